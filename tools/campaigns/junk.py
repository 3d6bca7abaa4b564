"""Values and texts that nobody should have to be afraid of."""

from typing import Any

from hypothesis import strategies as st

_NORMS = (
    *("layernorm", "layernorm-simple", "detachnorm", "rmsnorm", "prmsnorm", "adanorm", "crmsnorm"),
    *("scalenorm", "l1norm", "linfnorm", "topknorm", "dyt", "derf", "none", "fixnorm", "RMSNorm"),
)
_OPTIONS = (
    *("eps", "p", "k", "c", "bias", "eps_mode", "detach", "alpha", "shift", "dim", "weight", "n"),
)

whole = st.one_of(
    st.sampled_from([0, 1, 2, 3, 7, 8, 16, 63, 64, 65, 257, 1000, 65536]),
    st.sampled_from([10**6, 10**9, 2**31 - 1, 2**31, 2**32, 10**12, 2**63 - 1, 2**63, 10**30]),
    st.integers(-3, 40),
    st.integers(),
)
small = st.integers(1, 32)
share = st.one_of(st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.9, 1.0, 2.0, 10.0]), st.floats(0, 1))
number = st.one_of(
    st.floats(),
    st.sampled_from(
        [0.0, -0.0, 0.5, 1.0, -1.0, 1e-320, 5e-324, 1e-45, 1e-38, 3.5e38, 1e308, 0.9999999999999999]
    ),
)
# Text as it can stand in files and on command lines; lone surrogates are bytes that aren't UTF-8.
words = st.one_of(
    st.sampled_from(
        ["", " ", "null", "true", "1", "a b", "a\nb", "a\tb", "~", "..", ".", "/", "*"]
    ),
    st.sampled_from(
        ["{}", "[", "%", "{0}", "$HOME", "~nobody", "\udcff", "x" * 300, "🦜", "ă", "-"]
    ),
    st.sampled_from(["./", "/dev/null", "no/where", "a\r\nb", "\x1b[31m", "\u2028", "'", '"', "#"]),
    st.text(max_size=12),
)
on_a_command_line = words.filter(lambda text: "\0" not in text)


@st.composite
def norm_specs(draw: st.DrawFn) -> str:
    """Norms with options, most of them wrong somewhere."""
    name = draw(st.one_of(st.sampled_from(_NORMS), words))
    values = st.one_of(whole.map(str), number.map(str), st.sampled_from(["true", "inside", "std"]))
    part = st.tuples(
        st.one_of(st.sampled_from(_OPTIONS), words),
        st.sampled_from(["=", "=", ""]),
        st.one_of(values, words),
    )
    parts = ["".join(draw(part)) for _ in range(draw(st.integers(0, 2)))]
    return name + (":" if parts or draw(st.booleans()) else "") + ",".join(parts)


scalars = st.one_of(st.none(), st.booleans(), whole, number, words)
nested = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(words, whole, st.none()), inner, max_size=3),
    ),
    max_leaves=6,
)
anything: st.SearchStrategy[Any] = st.one_of(scalars, norm_specs(), nested)
