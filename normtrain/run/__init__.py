"""One run: from a recipe to a run folder, and from a run folder to scores and text."""

from normtrain.run.averaging import average
from normtrain.run.checkpoint import Checkpoint, read_checkpoint
from normtrain.run.converting import convert
from normtrain.run.evaluating import evaluate, translate
from normtrain.run.exporting import export
from normtrain.run.fitting import describe, fit, resume
from normtrain.run.generating import generate
from normtrain.run.importing import import_model, read_pretrained, start_recipe
from normtrain.run.loop import Interrupted

__all__ = [
    "Checkpoint",
    "Interrupted",
    "average",
    "convert",
    "describe",
    "evaluate",
    "export",
    "fit",
    "generate",
    "import_model",
    "read_checkpoint",
    "read_pretrained",
    "resume",
    "start_recipe",
    "translate",
]
