"""Log messages of the package: plain lines on stderr, above a progress bar where there is one."""

from __future__ import annotations

import functools
import logging
from typing import TYPE_CHECKING

from normtrain.ranks import is_first_process

if TYPE_CHECKING:
    from rich.console import Console

LOGGER = logging.getLogger("normtrain")


@functools.cache
def console() -> Console:
    """Return the console that messages and the progress bar share; it writes to `sys.stderr`."""
    from rich.console import Console

    return Console(stderr=True, highlight=False, soft_wrap=True)


class ConsoleHandler(logging.Handler):
    """Prints messages as they are; of several ranks the first one does."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        if is_first_process():
            console().print(self.format(record), markup=False, highlight=False)


def show_messages() -> None:
    """Print the messages of this package to stderr."""
    if not any(isinstance(handler, ConsoleHandler) for handler in LOGGER.handlers):
        LOGGER.addHandler(ConsoleHandler())
    LOGGER.setLevel(logging.INFO)


def show_messages_by_default() -> None:
    """Print the messages of this package to stderr where logging was not configured."""
    if not LOGGER.hasHandlers():
        show_messages()
