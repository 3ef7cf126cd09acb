"""Signals and the clock: when a run saves, and when it stops."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType

import jax

from training.engine import parallel

_NOTICE = (
    b"\nstopping as soon as the current step or compilation ends; Ctrl-C again exits "
    b"at once, without saving\n"
)

# With several processes, they agree once in this many checks: agreeing takes time.
_AGREE_EVERY = 32

# Requests of a process; the largest one counts. A request to stop is the number
# of the signal.
_NOTHING, _SAVE = -1, 0


class Stopped(KeyboardInterrupt):
    """A signal asked the run to stop.

    Attributes:
      signal: The signal's number; another process may have received it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.signal = number


class Interrupts:
    """Notes signals and the time while a run trains.

    All processes check it at the same points of the program, and get the same answers.

    Args:
      minutes: Time between two saves.
    """

    def __init__(self, minutes: float) -> None:
        self._seconds = 60 * minutes
        self._saved = time.monotonic()
        self._signal: int | None = None
        self._checks = 0

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Within it the signals that ask a run to stop are noted, for the next check.

        SIGINT and SIGTERM; SIGHUP, when the connection drops; and SIGUSR1, with which
        Slurm announces the end. The last two unless they are ignored, as by nohup.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        optional = [signal.SIGHUP, signal.SIGUSR1]
        heeded = [n for n in optional if signal.getsignal(n) != signal.SIG_IGN]
        numbers = [signal.SIGINT, signal.SIGTERM, *heeded]
        before = [signal.signal(number, self._note) for number in numbers]
        try:
            yield
        finally:
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = number

    def check(self) -> bool:
        """Returns whether to save now.

        Raises:
          Stopped: If a signal asked the run to stop.
        """
        self._checks += 1
        is_late = time.monotonic() - self._saved > self._seconds
        request = self._signal or (_SAVE if is_late else _NOTHING)
        if jax.process_count() > 1:
            if self._checks % _AGREE_EVERY:
                return False
            request = parallel.maximum(request)
        if request > _SAVE:
            raise Stopped(request)
        return request == _SAVE

    def check_last(self) -> None:
        """Raises Stopped if a signal arrived after the last check.

        With several processes only one of them knows of it, and it is ignored.
        """
        if self._signal is not None and jax.process_count() == 1:
            raise Stopped(self._signal)

    def saved(self) -> None:
        """Restarts the clock."""
        self._saved = time.monotonic()


@contextlib.contextmanager
def acknowledged() -> Iterator[None]:
    """Within it, the first SIGINT is acknowledged and the second ends the process.

    Python handles a signal when its main thread next runs Python code, and compiling a
    large network takes a minute. The interpreter passes the signal's number on at once,
    and a thread waits for it. The signal's own action remains the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    thread = threading.Thread(target=_watch, args=(reader,), daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        writer.close()
        thread.join()
        reader.close()


def _watch(reader: socket.socket) -> None:
    count = 0
    while numbers := reader.recv(16):
        interrupts = numbers.count(signal.SIGINT)  # other signals come here, too
        count += interrupts
        if count == interrupts == 1:
            with contextlib.suppress(OSError):
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, _NOTICE)
        if count > 1:
            os._exit(128 + signal.SIGINT)
