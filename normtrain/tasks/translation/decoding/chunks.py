"""Read a stream in chunks of the lines available, without waiting for more."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterable, Iterator

# Lines that arrive within this time of each other are put in one chunk.
_PAUSE_SECONDS = 0.02


class _End:
    """Marks the end of the lines, with the error that ended them, if any."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def chunks_as_they_come(lines: Iterable[str], size: int) -> Iterator[list[str]]:
    """Group lines into lists of at most ``size``, without waiting for a chunk to fill.

    A thread reads ahead, by ``size`` lines at most. A chunk ends when it is full or when no line
    has arrived for a moment.

    Args:
        lines: read once, in a separate thread.
        size: lines of a chunk at most; at least 1.

    Yields:
        Lists of 1 to ``size`` lines, in order.

    Raises:
        BaseException: whatever reading ``lines`` raises, after the lines before it.
    """
    waiting: queue.Queue[str | _End] = queue.Queue(maxsize=size)
    stopped = threading.Event()
    threading.Thread(target=_read, args=(lines, waiting, stopped), daemon=True).start()
    try:
        while True:
            chunk, end = _next_chunk(waiting, size)
            if chunk:
                yield chunk
            if end is not None:
                if end.error is not None:
                    raise end.error
                return
    finally:
        stopped.set()


def _read(lines: Iterable[str], waiting: queue.Queue[str | _End], stopped: threading.Event) -> None:
    def put(item: str | _End) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    try:
        for line in lines:
            if not put(line):
                return
    except BaseException as error:  # raised by the consumer
        put(_End(error))
    else:
        put(_End())


def _next_chunk(waiting: queue.Queue[str | _End], size: int) -> tuple[list[str], _End | None]:
    chunk: list[str] = []
    while len(chunk) < size:
        try:
            item = waiting.get(timeout=_PAUSE_SECONDS) if chunk else waiting.get()
        except queue.Empty:
            break
        if isinstance(item, _End):
            return chunk, item
        chunk.append(item)
    return chunk, None
