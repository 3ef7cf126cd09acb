"""When a run pauses: to save its state from time to time, or to stop when asked to."""

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

import jax

from training import parallel

# Processes agree on a pause in so many questions: agreeing takes a moment.
_AGREE_EVERY = 32

# What a process wishes: the largest wish holds for all. That to stop is the number of
# the signal.
_NOTHING, _SAVE = -1, 0


class Stopped(KeyboardInterrupt):
    """Someone wants the run to stop, by a signal.

    Attributes:
      signal: The signal's number; it may have come to another process.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


class Pauses:
    """Notes signals and the time, and says when to pause.

    All processes ask it the same questions in the same order, and get the same answers.

    Args:
      minutes: How long training goes on between two pauses to save.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes
        self._saved = time.monotonic()
        self._signal: int | None = None
        self._asked = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within it SIGINT and SIGTERM are noted; a second SIGINT ends the process."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = [signal.signal(number, self._note) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and self._signal is not None:
            # Threads are at work, which an orderly end would wait for.
            os._exit(128 + number)
        self._signal = number

    def is_due(self) -> bool:
        """Whether to save now.

        Raises:
          Stopped: If someone wants the run to stop.
        """
        self._asked += 1
        late = time.monotonic() - self._saved > self._seconds
        wish = self._signal or (_SAVE if late else _NOTHING)
        if jax.process_count() > 1:
            if self._asked % _AGREE_EVERY:
                return False
            wish = parallel.maximum(wish)
        if wish > _SAVE:
            raise Stopped(wish)
        return wish == _SAVE

    def end(self) -> None:
        """Ends the asking.

        Raises:
          Stopped: If a signal came after the last question. Of several processes only
            one knows of it; then it is too late.
        """
        if self._signal is not None and jax.process_count() == 1:
            raise Stopped(self._signal)

    def saved(self) -> None:
        """Counts the time from here."""
        self._saved = time.monotonic()
