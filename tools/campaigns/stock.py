"""Good material that bad inputs are made from: tiny corpora, runs, checkpoints and exports."""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tools.campaigns.tiny import TINY, TINY_TEXT, tiny_settings, write_corpus, write_text

TASKS = ("translation", "language")
RECIPES = {"translation": "envi", "language": "lm"}
QUICK = {"train.max_steps": 2, "train.val_every": 2, "train.keep": 2, "optim.warmup_steps": 1}
# A model that Llama's format can hold, and one for GPT-2's.
LLAMA = {"model_activation": "swiglu", "model_bias": "false", "model_norm": "rmsnorm:eps=1e-6"}
GPT2 = {
    "model_activation": "gelu-tanh",
    "model_bias": "true",
    "model_positions": "learned",
    "model_norm": "layernorm",
}


def quick_settings(task: str, **changes: Any) -> list[str]:
    """``key=value`` settings of a run of one or two steps."""
    tiny = TINY if task == "translation" else TINY_TEXT
    return tiny_settings(tiny | QUICK, **changes)


def set_words(settings: Iterable[str]) -> list[str]:
    """Settings as words of a command line."""
    return [word for setting in settings for word in ("--set", setting)]


class Stock:
    """Everything good, made once; cases copy from it and never write into it.

    Attributes:
        corpora: by task, a folder with train, valid and test.
        runs: by task, a run of two steps that could be gone on with.
        checkpoints: by task, its ``last.ckpt``.
        exports: folders by format: ``native``, ``llama`` and ``gpt2``.
    """

    def __init__(self, home: Path) -> None:
        self.home = home
        self.corpora = {
            "translation": write_corpus(home / "pairs", train=40, valid=4, test=3),
            "language": write_text(home / "text", train=40, valid=4, test=3),
        }
        self.runs = {task: self._run(task, task) for task in TASKS}
        self.checkpoints = {task: run / "checkpoints/last.ckpt" for task, run in self.runs.items()}
        self.exports = {"native": self._export("language", "native")}
        for form, changes in (("llama", LLAMA), ("gpt2", GPT2)):
            changes = changes | {"data_tokenizer": "bpe", "data_vocab_size": 270}
            self._run("language", f"for-{form}", **changes)
            self.exports[form] = self._export(f"for-{form}", form)

    def plain_recipe(self, task: str) -> dict[str, Any]:
        """A recipe that trains in a moment, as nested plain values."""
        from normtrain.config.recipe import resolve

        name, data = RECIPES[task], str(self.corpora[task])
        return resolve(name, data=data, overrides=quick_settings(task)).plain()

    def copy_run(self, task: str, place: Path, *, finished: bool = False) -> Path:
        """A copy of a run after its first step of two, or of the finished one."""
        run = shutil.copytree(self.runs[task], place)
        if not finished:
            (run / "status.json").unlink()
            (run / "checkpoints/last.ckpt").unlink()
            shutil.copy(run / "checkpoints/step-00000001.ckpt", run / "checkpoints/last.ckpt")
            (run / "checkpoints/step-00000002.ckpt").unlink()
        return run

    def _run(self, task: str, name: str, **changes: Any) -> Path:
        from normtrain.config.recipe import resolve
        from normtrain.training import fit

        settings = quick_settings(task, **changes)
        recipe = resolve(RECIPES[task], data=str(self.corpora[task]), overrides=settings)
        return fit(recipe, out=self.home / "runs" / name)

    def _export(self, run: str, form: str) -> Path:
        from normtrain.training import export

        export(self.home / "runs" / run, self.home / "exports" / form, format=form)
        return self.home / "exports" / form
