"""One run: from a recipe to a run folder, and from a run folder to scores and text."""

from normtrain.training.averaging import average
from normtrain.training.checkpoint import Checkpoint, read_checkpoint
from normtrain.training.converting import convert
from normtrain.training.evaluating import evaluate, generate, translate
from normtrain.training.exporting import export
from normtrain.training.faults import Interrupted
from normtrain.training.fitting import describe, fit
from normtrain.training.importing import import_model, read_pretrained, start_recipe
from normtrain.training.resuming import resume

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
