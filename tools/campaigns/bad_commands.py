"""Good checkpoints, and commands with options that make no sense."""

import shutil
from pathlib import Path

from hypothesis import strategies as st

from tools.campaigns import junk
from tools.campaigns.arena import Case
from tools.campaigns.stock import TASKS, Stock

# Options that take a value, by command; what would rightly take hours is not asked for.
_OPTIONS = {
    "evaluate": ["--split", "--data", "--beam", "--length-penalty", "--stride", "--json"],
    "translate": ["--beam", "--length-penalty", "-o"],
    "generate": ["--prompt", "--temperature", "--top-k", "--top-p", "--seed", "--stop"],
    "average": ["--last", "-o"],
    "convert": ["--to", "-o"],
    "export": ["--format"],
    "import": ["-o", "--recipe", "--data", "--set"],
}
_PLACES = (
    *("out.ckpt", ".", "..", "no/where/out.ckpt", "file/out.ckpt", "file", "folder", "x" * 300),
    *("/dev/null", "loop", "dangling", "run/checkpoints/x.ckpt", "run/checkpoints", "locked/x"),
    *("/dev/full", "/proc/x", "\udcff", "a\nb", "-"),
)
_PIECES = st.sampled_from(
    [b"an be", b"\n", b"\r\n", b"\xff", b"\0", b"", b"\xef\xbb\xbf", b"do " * 400, "ă".encode()]
)
_REST = ("recipes", "norms", "swap-check", "bench", "nonsense", "", "--", "-x", "--version", "-h")


def _lay_all(task: str) -> object:
    def lay(stock: Stock, place: Path) -> None:
        stock.copy_run(task, place / "run", finished=True)
        shutil.copy(stock.checkpoints[task], place / "model.ckpt")
        (place / "file").write_text("not a folder\n")
        (place / "folder").mkdir()
        (place / "folder/inside.txt").write_text("here\n")
        (place / "loop").symlink_to("loop")
        (place / "dangling").symlink_to("nowhere")
        (place / "locked").mkdir(mode=0o500)

    return lay


@st.composite
def _values(draw: st.DrawFn, option: str) -> str:
    if option == "-o":
        return draw(st.one_of(st.sampled_from(_PLACES), junk.on_a_command_line))
    if option in ("--to", "--format"):
        good = ["rmsnorm", "crmsnorm", "layernorm", "llama", "qwen3", "gpt2", "native"]
        return draw(st.one_of(st.sampled_from(good), junk.on_a_command_line))
    if option in ("--split", "--data"):
        good = ["test", "valid", "train", "test.en", "../run", "run", "file", ".", "/dev/null"]
        return draw(st.one_of(st.sampled_from(good), junk.on_a_command_line))
    values = st.one_of(junk.whole.map(str), junk.number.map(str), junk.on_a_command_line)
    small = st.integers(0, 9).map(str)
    return draw(st.one_of(small, values))


@st.composite
def _on_a_model(draw: st.DrawFn, task: str) -> Case:
    names = [name for name in _OPTIONS if name != "translate" or task == "translation"]
    command = draw(st.sampled_from(names))
    places = ["model.ckpt", "run", "file", "folder", "loop", "no/where", ".", "run/recipe.yaml"]
    good = "run" if command == "average" else "model.ckpt"
    words = [command, good if draw(st.integers(0, 3)) else draw(st.sampled_from(places))]
    for _ in range(draw(st.integers(0, 2))):
        option = draw(st.sampled_from(_OPTIONS[command]))
        words += [option] if option == "--json" else [option, draw(_values(option))]
    if command in ("average", "convert", "import") and "-o" not in words:
        words += ["-o", draw(_values("-o"))]
    if command == "convert" and "--to" not in words:
        words += ["--to", "layernorm"]
    if command == "average" and "--last" not in words:
        words += ["--last", "2"]
    if command == "export":
        words.insert(2, draw(_values("-o")))
    if command == "generate":
        words += ["--max-tokens", draw(st.sampled_from(["0", "1", "5", "-1", "x"]))]
    text = b"".join(draw(st.lists(_PIECES, max_size=6)))
    words = [word.replace("\0", "") for word in words]
    stdin = text if command == "translate" else None
    about = f"{task}, stdin {stdin!r}"
    return Case(tuple(words), about, _lay_all(task), stdin, streams=command != "evaluate")


@st.composite
def _on_nothing(draw: st.DrawFn) -> Case:
    first = draw(st.sampled_from(_REST))
    second = ["list", "show", "copy", "step", "math:sqrt", "os:getcwd", "nosuch:x", "", "a:b:c"]
    rest = st.one_of(
        st.sampled_from(
            ["envi", "lm", "rmsnorm", "a.yaml", "file.yaml", "--norm", "--help", "no/x.yaml"]
        ),
        junk.on_a_command_line,
        junk.norm_specs(),
    )
    words = [first, draw(st.one_of(st.sampled_from(second), junk.on_a_command_line))]
    words += draw(st.lists(rest, max_size=3))
    return Case(tuple(word.replace("\0", "") for word in words), "words", streams=True)


@st.composite
def commands(draw: st.DrawFn, stock: Stock) -> Case:
    """A command with senseless options."""
    if draw(st.integers(0, 3)) == 0:
        return draw(_on_nothing())
    return draw(_on_a_model(draw(st.sampled_from(TASKS))))
