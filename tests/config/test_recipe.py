"""The recipe: loading, changing, refusing, writing. Messages are part of what is tested."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from normtrain.config import recipe as recipes
from normtrain.config import yamlio
from normtrain.errors import UserError
from normtrain.tasks.translation.config import TranslationRecipe as Recipe


def as_overrides(recipe: Recipe) -> list[str]:
    """Every key of a recipe as ``section.key=value``."""
    plain = recipe.plain()
    flat = {key: value for key, value in plain.items() if not isinstance(value, dict)}
    for section, values in plain.items():
        if isinstance(values, dict):
            flat |= {f"{section}.{key}": value for key, value in values.items()}
    return [f"{key}={yamlio.write_value(value)}" for key, value in flat.items()]


def write(folder: Path, text: str | bytes, name: str = "mine.yaml") -> Path:
    path = folder / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_defaults_fill_what_the_file_leaves_out(tmp_path: Path) -> None:
    recipe = recipes.load(write(tmp_path, "model: {d_model: 512, heads: 8}"))
    assert recipe.name == "mine"
    assert (recipe.model.d_model, recipe.model.heads, recipe.model.d_ff) == (512, 8, 1024)
    assert recipe.optim.betas == (0.9, 0.98)
    assert recipe.train.patience is None


def test_file_name_becomes_a_usable_name(tmp_path: Path) -> None:
    assert recipes.load(write(tmp_path, "task: translation", "my first!.yaml")).name == "my-first"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("model: {d_modle: 3}", ["'model.d_modle'", "model.d_model"]),
        ("mdoel: {d_model: 3}", ["'mdoel'", "model"]),
        ("model: {lr: 3}", ["'model.lr'", "optim.lr"]),
        ("d_model: 512", ["'d_model'", "model.d_model"]),
        ("model: {1: 2}", ["1 cannot be a key"]),
        ("model:", ["section model is empty"]),
        ("model: 3", ["section model must be", "mapping"]),
        ("[1, 2]", ["must be a mapping", "got a list"]),
        ("", ["is empty"]),
        ("task: translation\ntask: translation", ["line 2", "'task' is given twice"]),
        ("model:\n  heads: 4\n  heads: 8", ["line 3", "'heads' is given twice"]),
        ("model: {d_model: true}", ["model.d_model must be", "integer"]),
        ("model: {d_model: 0}", ["model.d_model must be", ">= 1"]),
        ("model: {d_ff: 1000000000000}", ["model.d_ff must be", "at most 2147483647"]),
        ("model: {dropout: 1.0}", ["model.dropout must be", "< 1"]),
        ("model: {placement: per}", ["model.placement", "pre, post, sandwich", "mean pre"]),
        ("model: {norm_rules: [[a]]}", ["model.norm_rules", "[module-name pattern, norm] pairs"]),
        (
            "model: {placement: post, zero_mean: stream}",
            ["model.zero_mean stream needs model.placement pre or sandwich"],
        ),
        ("optim: {lr: 0}", ["optim.lr must be", "> 0"]),
        ("optim: {betas: [0.9, 1.2]}", ["optim.betas must be", "< 1"]),
        ("train: {ema: 1.0}", ["train.ema must be", "> 0 and < 1"]),
        ("train: {precision: fp16}", ["train.precision", "auto, 32, bf16-mixed, bf16-true"]),
        ("task: chess", ["task must be", "translation"]),
        ("name: a/b", ["name must be"]),
        ("model: {heads: 3}", ["model.d_model (256)", "multiple of model.heads (3)"]),
        ("train: {max_steps: 400}", ["optim.warmup_steps (400)", "train.max_steps (400)"]),
        ("model: {max_positions: 128}", ["data.max_length (128)", "model.max_positions (128)"]),
        ("data: {max_tokens: 128}", ["data.max_tokens (128)", "data.max_length (128)"]),
        ("x: !!python/object/apply:os.system [ls]", ["!!python/object/apply:os.system"]),
        ("a: [1", ["not valid YAML"]),
        ("a: &a [*a]", ["'a'"]),
        (b"\xff\xfe\x00", ["not UTF-8"]),
        (b"\x00\x01", ["not text"]),
    ],
)
def test_a_wrong_file_is_one_clear_line(
    tmp_path: Path, text: str | bytes, parts: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        recipes.load(write(tmp_path, text))
    message = str(caught.value)
    assert "mine.yaml" in message
    assert all(part in message for part in parts), message
    assert "\n" not in message
    assert "pydantic" not in message
    assert "http" not in message
    assert len(message) < 300 + len(str(tmp_path))


def test_further_problems_are_counted(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"and 1 more"):
        recipes.load(write(tmp_path, "model: {heads: x}\ntrain: {keep: x}"))


def test_missing_files_and_folders_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        recipes.load(tmp_path / "no.yaml")
    with pytest.raises(UserError, match="is a folder"):
        recipes.load(tmp_path)


def test_unknown_name_lists_the_nearest_and_the_file_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match=r"unknown recipe 'envy'; did you mean envi"):
        recipes.load("envy")
    monkeypatch.chdir(tmp_path)
    write(tmp_path, "task: translation", "envy")
    with pytest.raises(UserError, match=r"for a file, write \./envy"):
        recipes.load("envy")
    assert recipes.load("./envy").name == "envy"


@pytest.mark.parametrize(
    ("text", "value"), [("1e-3", 1e-3), ("5E-4", 5e-4), ("2", 2.0), (".5", 0.5), ("1.0e-9", 1e-9)]
)
def test_numbers_are_numbers_however_written(tmp_path: Path, text: str, value: float) -> None:
    path = write(tmp_path, f"optim: {{lr: {text}}}")
    assert recipes.load(path).optim.lr == value
    assert recipes.parse_override(f"optim.lr={text}", "translation") == ("optim.lr", value)


def test_precision_32_needs_no_quotes(tmp_path: Path) -> None:
    assert recipes.load(write(tmp_path, "train: {precision: 32}")).train.precision == "32"
    assert recipes.override(Recipe(name="x"), ["train.precision=32"]).train.precision == "32"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("d_model=512", "did you mean model.d_model"),
        ("dropout=0.3", "did you mean model.dropout"),
        ("max_length=3", "data.max_length or decode.max_length"),
        ("model={}", "model is a section"),
        ("model.d_model", "must be section.key=value"),
        ("zzz=1", "sections are data, model"),
        ("optim.lr=[", "not valid YAML"),
        ("optim.lr=fast", "optim.lr must be"),
    ],
)
def test_a_wrong_override_says_what_would_be_right(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message.replace("(", r"\(")):
        recipes.override(Recipe(name="x"), [text])


def test_overrides_take_yaml_and_the_last_wins() -> None:
    settings = [
        "model.d_model=64",
        "model.d_model=128",
        "optim.betas=[0.9, 0.999]",
        "train.patience=3",
        "data.revision=0012",
        "data.source=a: b",
        "model.norm_rules=[['encoder.*', layernorm]]",
        "model.bias=false",
    ]
    recipe = recipes.override(Recipe(name="x"), settings)
    assert recipe.model.d_model == 128
    assert recipe.optim.betas == (0.9, 0.999)
    assert recipe.train.patience == 3
    assert (recipe.data.revision, recipe.data.source) == ("0012", "a: b")
    assert recipe.model.norm_rules == (("encoder.*", "layernorm"),)
    assert recipe.model.bias is False


def test_flags_go_where_they_belong(tmp_path: Path) -> None:
    path = write(tmp_path, "model: {norm_rules: [['dec*', layernorm]]}")
    kept = recipes.resolve(path, norm_at=["enc*=adanorm:C=2"], seed=7, precision="bf16-mixed")
    assert kept.model.norm_rules == (("dec*", "layernorm"), ("enc*", "adanorm:C=2.0"))
    assert (kept.train.seed, kept.train.precision) == (7, "bf16-mixed")
    everywhere = recipes.resolve(path, norm="PRMSNorm:p=.125", norm_at=[("a*", "none")])
    assert everywhere.model.norm == "prmsnorm:p=0.125"
    assert everywhere.model.norm_rules == (("a*", "none"),)


def test_a_data_folder_is_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, "task: translation")
    (tmp_path / "texts").mkdir()
    monkeypatch.chdir(tmp_path)
    assert recipes.resolve(path, data="./texts").data.source == str(tmp_path / "texts")
    assert recipes.resolve(path, data="hf:me/texts").data.source == "hf:me/texts"
    assert recipes.resolve(path, data="texts").data.source == "texts"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm": "layernrm"}, "model.norm: unknown norm 'layernrm'.*layernorm"),
        ({"norm_at": ["enc*=nope"]}, r"model.norm_rules 'enc\*': unknown norm 'nope'"),
        ({"norm_at": ["enc*"]}, "PATTERN=NORM"),
        ({"overrides": ["model.qk_norm=nope"]}, "model.qk_norm: unknown norm"),
        ({"norm": "rmsnorm", "overrides": ["model.norm=none"]}, "model.norm is given by its own"),
    ],
)
def test_wrong_flags(tmp_path: Path, options: dict[str, object], message: str) -> None:
    path = write(tmp_path, "task: translation")
    with pytest.raises(UserError, match=message):
        recipes.resolve(path, **options)  # type: ignore[arg-type]


def test_diff_names_every_change_and_nothing_else() -> None:
    old = Recipe(name="x")
    new = recipes.override(
        old, ["model.d_model=512", "train.ema=0.999", "model.norm_rules=[['a*', none]]"]
    )
    assert recipes.diff(old, new) == [
        "model.norm_rules: [] → [[a*, none]]",
        "model.d_model: 256 → 512",
        "train.ema: null → 0.999",
    ]
    assert recipes.diff(new, new) == []


def test_a_recipe_from_before_a_key_existed_reads_as_its_default() -> None:
    recipe = Recipe(name="x")
    plain = recipe.plain()
    later = {"embedding_norm": "none", "zero_mean": "none", "d_stream": None, "head_bias": False}
    assert {key: plain["model"].pop(key) for key in later} == later
    assert recipes.from_plain(plain) == recipe


def test_recipes_do_not_change() -> None:
    recipe = Recipe(name="x")
    with pytest.raises(ValueError, match="frozen"):
        recipe.model.d_model = 3


words = st.text(st.characters(codec="utf-8", exclude_categories=["C"]), min_size=1)
fractions = st.floats(0, 0.99)


@settings(max_examples=40)
@given(
    source=words,
    revision=st.none() | words,
    rules=st.lists(st.tuples(words, words), max_size=3),
    lr=st.floats(1e-9, 10),
    betas=st.tuples(fractions, fractions),
    ema=st.none() | st.floats(0.01, 0.99),
    seed=st.integers(0, 2**32 - 1),
)
def test_dump_and_overrides_read_back_equal(
    source: str,
    revision: str | None,
    rules: list[tuple[str, str]],
    lr: float,
    betas: tuple[float, float],
    ema: float | None,
    seed: int,
) -> None:
    plain = {
        "name": "x",
        "data": {"source": source, "revision": revision},
        "model": {"norm_rules": rules},
        "optim": {"lr": lr, "betas": betas},
        "train": {"ema": ema, "seed": seed},
    }
    recipe = recipes.from_plain(plain)
    text = recipes.dump(recipe)
    assert recipes.from_plain(yaml.safe_load(text)) == recipe  # any YAML reader will do
    assert recipes.from_plain(recipe.plain()) == recipe
    pairs = dict(recipes.parse_override(text, recipe.task) for text in as_overrides(recipe))
    assert pairs["data.source"] == source
    assert pairs["data.revision"] == revision
    assert [tuple(pair) for pair in pairs["model.norm_rules"]] == rules
    assert (pairs["optim.lr"], tuple(pairs["optim.betas"])) == (lr, betas)
    assert (pairs["train.ema"], pairs["train.seed"]) == (ema, seed)


def test_dump_keeps_the_canonical_order() -> None:
    text = recipes.dump(Recipe(name="x"))
    assert list(yaml.safe_load(text)) == list(Recipe.model_fields)
    assert text.index("d_model") < text.index("heads") < text.index("d_ff")


@pytest.mark.parametrize("name", ["envi", "envi-iwslt15"])
def test_shipped_recipes_are_valid(name: str) -> None:
    recipe = recipes.resolve(name)
    assert recipe.name == name
    assert recipes.resolve(name, overrides=as_overrides(recipe)) == recipe


def test_reading_a_recipe_needs_no_torch() -> None:
    code = (
        "import sys; from normtrain.config.recipe import load; load('envi'); "
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
