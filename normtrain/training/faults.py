"""What can go wrong while a run trains, in one line that says how to resume."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import torch

from normtrain.config.schema import Recipe
from normtrain.errors import RunError, UserError, described
from normtrain.ranks import is_first_process
from normtrain.tasks.module import TaskModule
from normtrain.tasks.step_check import NonFiniteStep
from normtrain.training.callbacks.random_state import RandomState
from normtrain.training.callbacks.stop import StopAsked
from normtrain.training.folder import RunFolder
from normtrain.training.ranks_lost import Ranks

FAILED, INTERRUPTED = 1, 130
"""Exit codes of ranks that leave the message to rank 0."""


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM stopped the run, which was saved; the message says how to resume."""


class Faults:
    """Turns the failures of one training into `RunError`s and `Interrupted`.

    Args:
        recipe: of the run.
        folder: of the run.
        module: what trains.
        ranks: watches the other processes.
        checkpoint: what the run resumes from, if it does.
        random_state: knows whether a batch was trained on.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        module: TaskModule,
        ranks: Ranks,
        checkpoint: Path | None,
        random_state: RandomState,
    ) -> None:
        self.recipe, self.folder, self.module = recipe, folder, module
        self.ranks, self.checkpoint, self.random_state = ranks, checkpoint, random_state

    @contextlib.contextmanager
    def reported(self) -> Iterator[None]:
        """Run the training.

        Raises:
            Interrupted: a signal stopped it.
            RunError: a failure that is known; other failures are raised as they are.
            SystemExit: of a rank that leaves the message to rank 0.
        """
        resume = how_to_resume(self.folder)
        try:
            yield
        except StopAsked as stop:
            if not is_first_process():
                raise SystemExit(INTERRUPTED) from stop
            raise Interrupted(f"{stop}; {resume}") from stop
        except (KeyboardInterrupt, SystemExit) as stop:  # Lightning exits on a bare Ctrl-C
            raise Interrupted(
                f"stopped at once, without saving; {resume}, from its last checkpoint"
            ) from stop
        except NonFiniteStep as broken:
            if not is_first_process():
                raise SystemExit(FAILED) from broken
            raise RunError(f"{broken} ({self._last_good()})") from broken
        except OSError as error:
            raise RunError(
                f"cannot write {self.folder.path}: {error.strerror or error}; free some space, "
                f"then {resume}"
            ) from error
        except (UserError, RunError):
            raise
        except Exception as error:
            known = self.ranks.error(error) or self._known(error)
            if known is None:
                raise
            raise known from error

    def _known(self, error: Exception) -> RunError | None:
        if "DataLoader worker" in str(error):
            return RunError(
                "a data loader process was killed, or ran out of memory (there are data.workers "
                f"of them); {how_to_resume(self.folder)}, from its last checkpoint"
            )
        if out_of_memory(error):
            return RunError(self._memory_advice())
        if self.checkpoint is not None and not self.random_state.begun:
            return RunError(
                f"cannot resume from {self.checkpoint}: its training state does not fit "
                f"({described(error)}); use an earlier checkpoint of the run"
            )
        return None

    def _last_good(self) -> str:
        newest = max(self.folder.checkpoints.glob("step-*.ckpt"), default=None)
        return f"the last good checkpoint is {newest}" if newest else "nothing was saved yet"

    def _memory_advice(self) -> str:
        shapes = ", ".join(f"{name} {shape}" for name, shape in self.module.batch_shape.items())
        recompute = ", or set train.activation_checkpointing"
        return (
            f"out of memory on a batch of shape {shapes or '(none yet)'}; lower data.max_tokens "
            f"(now {self.recipe.data.max_tokens}) and raise optim.accumulate to keep the size of "
            f"a step{'' if self.recipe.train.activation_checkpointing else recompute}"
        )


def how_to_resume(folder: RunFolder) -> str:
    """Return the end of a message about a run that stopped."""
    return f"resume with: normtrain fit --resume {folder.path}"


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the host or a GPU is out of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return "can't allocate memory" in text or "not enough memory" in text
