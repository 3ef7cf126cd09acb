"""Says at once that Ctrl-C was noticed."""

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator

_NOTICE = (
    b"\nstopping as soon as the current step or compilation ends; Ctrl-C again exits "
    b"at once\n"
)


@contextlib.contextmanager
def acknowledged() -> Iterator[None]:
    """Within it, the first SIGINT is acknowledged and the second ends the process.

    Python handles a signal when its main thread next runs Python code, and compilation
    of a large network takes a minute. The interpreter passes the signal's number on at
    once, and a thread waits for it. What the signal does remains the same.
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
        count += numbers.count(signal.SIGINT)
        if count == 1:
            with contextlib.suppress(OSError):
                os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, _NOTICE)
        if count > 1:
            os._exit(128 + signal.SIGINT)
