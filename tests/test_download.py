"""CIFAR and the network, all of it on this machine: downloads cut, stalled, wrong."""

import contextlib
import fcntl
import hashlib
import http.server
import pathlib
import shutil
import signal
import socket
import tempfile
import threading
import time

import pytest

from tests.cifar_archives import assert_holds, by_hand, prepared, register
from training import data, errors
from training.data import _download


def test_no_network_is_told_at_once(with_archive):
    place = by_hand(with_archive)
    place.unlink()
    start = time.monotonic()
    with pytest.raises(errors.DataError) as caught:
        data.load("cifar100", data_dir=with_archive)
    assert time.monotonic() - start < 8
    for part in (f"http://127.0.0.1:9/{place.name}", str(place), "--data-dir"):
        assert part in str(caught.value)
    assert not prepared(with_archive).exists()
    assert not list(place.parent.iterdir())


def test_a_name_that_is_looked_up_for_ever_is_given_up(with_archive, monkeypatch):
    assert _download._PROBE_SECONDS < 8
    monkeypatch.setattr(_download, "_PROBE_SECONDS", 0.3)
    done = threading.Event()

    def hang(*_, **__):
        done.wait(30)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    by_hand(with_archive).unlink()
    start = time.monotonic()
    with pytest.raises(errors.DataError, match=r"no answer in 0\.3 s"):
        data.load("cifar100", data_dir=with_archive)
    assert time.monotonic() - start < 5
    done.set()


class _Server(http.server.ThreadingHTTPServer):
    """Serves one body, and can be told to do it badly.

    Attributes:
      body: what is served under every path.
      status: of every answer.
      wait: seconds before every answer.
      ranges: whether a request for a range is understood.
      cut: bytes of the next body after which the connection ends, if not None.
      before_cut: called at that point.
      asked: the range asked for and the bytes sent, of each GET.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.body, self.status, self.wait = b"", 200, 0.0
        self.ranges, self.cut, self.before_cut = True, None, lambda: None
        self.asked = []
        threading.Thread(target=self.serve_forever, args=(0.01,)).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/cifar-100-binary.tar.gz"


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_HEAD(self):
        self._answer(headers_only=True)

    def do_GET(self):
        self._answer()

    def _answer(self, headers_only=False):
        server, asked = self.server, self.headers["Range"]
        time.sleep(server.wait)
        body, status, cut = server.body, server.status, None
        if asked and server.ranges:
            start = int(asked.removeprefix("bytes=").removesuffix("-"))
            status = 206 if start < len(body) else 416
            body = body[start:]
        if not headers_only:
            cut, server.cut = server.cut, None
            server.asked.append((asked, len(body[:cut])))
        with contextlib.suppress(OSError):  # The other side has seen enough.
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            # What some servers say of every file called .gz.
            self.send_header("Content-Encoding", "x-gzip")
            self.end_headers()
            if not headers_only:
                self.wfile.write(body[:cut])
            if cut is not None:
                server.before_cut()

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = _Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def to_download(with_archive, server, monkeypatch):
    """A data directory whose archive is served instead of lying there."""
    server.body = by_hand(with_archive).read_bytes()
    register(monkeypatch, with_archive, url=server.url)
    by_hand(with_archive).unlink()
    return with_archive


def _part(root):
    return by_hand(root).with_name("cifar-100-binary.tar.gz.part")


def _assert_arrives(root, contents):
    """Asserts that the set can be had now and that nothing unfinished is left."""
    dataset = data.load("cifar100", data_dir=root, validation_fraction=0)
    assert_holds(dataset, contents)
    assert list(by_hand(root).parent.iterdir()) == [by_hand(root)]


def test_cifar_is_downloaded_once(to_download, original, server):
    _assert_arrives(to_download, original[1])
    assert server.asked == [(None, len(server.body))]
    shutil.rmtree(prepared(to_download))
    _assert_arrives(to_download, original[1])
    assert len(server.asked) == 1
    # Nor is a download trusted for ever.
    shutil.rmtree(prepared(to_download))
    by_hand(to_download).write_bytes(b"damaged")
    with pytest.raises(errors.DataError, match="has the SHA-256") as caught:
        data.load("cifar100", data_dir=to_download)
    assert str(by_hand(to_download)) in str(caught.value)


def test_a_slow_server_is_waited_for(to_download, original, server, monkeypatch):
    monkeypatch.setattr(_download, "_CONNECT_SECONDS", 0.1)
    server.wait = 0.5
    _assert_arrives(to_download, original[1])


def _assert_goes_on(root, contents, server):
    """Asserts that a part is there, and that only the rest of it is asked for."""
    kept = _part(root).stat().st_size
    assert 0 < kept < len(server.body)
    assert _part(root).read_bytes() == server.body[:kept]
    assert not by_hand(root).exists()
    server.asked.clear()
    _assert_arrives(root, contents)
    assert server.asked == [(f"bytes={kept}-", len(server.body) - kept)]


def test_a_cut_download_goes_on_where_it_was(to_download, original, server):
    server.cut = len(server.body) // 2
    with pytest.raises(errors.DataError, match="goes on from there") as caught:
        data.load("cifar100", data_dir=to_download)
    for part in (server.url, "broke off", str(by_hand(to_download)), "--data-dir"):
        assert part in str(caught.value)
    _assert_goes_on(to_download, original[1], server)


def test_a_stalled_download_is_given_up_and_goes_on(
    to_download, original, server, monkeypatch
):
    monkeypatch.setattr(_download, "_STALL_SECONDS", 0.3)
    server.cut = len(server.body) // 2
    told = threading.Event()
    server.before_cut = lambda: told.wait(20)
    start = time.monotonic()
    with pytest.raises(errors.DataError, match=r"nothing came for 0\.3 s.*goes on"):
        data.load("cifar100", data_dir=to_download)
    assert time.monotonic() - start < 5
    told.set()
    _assert_goes_on(to_download, original[1], server)


def test_one_interrupt_stops_a_download_and_keeps_it(to_download, original, server):
    server.cut = len(server.body) // 2
    told = threading.Event()
    sent = []

    def interrupt():
        time.sleep(0.1)  # For the other side to wait for more.
        sent.append(time.monotonic())
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        told.wait(20)

    server.before_cut = interrupt
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            data.load("cifar100", data_dir=to_download)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - sent[0] < 2
    told.set()
    _assert_goes_on(to_download, original[1], server)


def test_a_server_without_ranges_is_asked_for_all(to_download, original, server):
    _part(to_download).write_bytes(b"x" * 1000)
    server.ranges = False
    _assert_arrives(to_download, original[1])
    assert server.asked == [("bytes=1000-", len(server.body))]


def test_a_refused_range_starts_anew(to_download, original, server):
    size = len(server.body) + 1
    _part(to_download).write_bytes(b"x" * size)
    _assert_arrives(to_download, original[1])
    assert server.asked == [(f"bytes={size}-", 0), (None, len(server.body))]


def test_a_complete_part_is_only_verified(to_download, original, server):
    _part(to_download).write_bytes(server.body)
    _assert_arrives(to_download, original[1])
    assert server.asked == []


@pytest.mark.parametrize("status", [404, 503])
@pytest.mark.parametrize("kept", [b"", b"begun"])
def test_a_server_without_the_archive_is_not_asked_again(
    status, kept, to_download, server
):
    if kept:
        _part(to_download).write_bytes(kept)
    server.status, server.ranges, server.body = status, False, b"No such page"
    with pytest.raises(errors.DataError, match=f"HTTP {status}") as caught:
        data.load("cifar100", data_dir=to_download)
    assert "--data-dir" in str(caught.value)
    assert len(server.asked) == 1
    left = {path: path.read_bytes() for path in _part(to_download).parent.iterdir()}
    assert left == ({_part(to_download): kept} if kept else {})


@pytest.mark.parametrize("begun", [False, True])
def test_a_wrong_download_is_removed(begun, to_download, original, server):
    official = server.body
    if begun:
        _part(to_download).write_bytes(b"Not how it begins")
    else:
        server.body = b"<html>Please log in</html>"
    with pytest.raises(errors.DataError, match=r"not the registered .* removed"):
        data.load("cifar100", data_dir=to_download)
    assert not list(_part(to_download).parent.iterdir())
    assert not prepared(to_download).exists()
    server.body = official
    _assert_arrives(to_download, original[1])


_FULL = pathlib.Path("/dev/full")  # Linux's own full disk.


@pytest.mark.skipif(not _FULL.exists(), reason="needs /dev/full")
def test_a_full_disk_is_told(to_download):
    _part(to_download).symlink_to(_FULL)
    with pytest.raises(errors.DataError, match="No space left on device"):
        data.load("cifar100", data_dir=to_download)


def test_a_download_that_cannot_be_stored_is_told(to_download):
    shutil.rmtree(to_download / "downloads")
    (to_download / "downloads").touch()  # In the way of the directory.
    with pytest.raises(errors.DataError, match="part cannot be written"):
        data.load("cifar100", data_dir=to_download)


def test_two_processes_do_not_write_the_same_part(to_download, original, server):
    with _part(to_download).open("ab") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(errors.DataError, match="another process"):
            data.load("cifar100", data_dir=to_download)
        assert _part(to_download).exists()
    assert server.asked == []
    _assert_arrives(to_download, original[1])


@pytest.mark.parametrize("terminal", [False, True])
def test_the_bar_is_for_terminals(terminal, tmp_path, server, monkeypatch, capsys):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TTY_COMPATIBLE", str(int(terminal)))  # rich asks for it.
    monkeypatch.setenv("COLUMNS", "120")
    server.body = bytes(2_000_000)
    _part(tmp_path).parent.mkdir(parents=True)
    _part(tmp_path).write_bytes(server.body[:500_000])
    checksum = hashlib.sha256(server.body).hexdigest()
    _download.download(server.url, by_hand(tmp_path), len(server.body), checksum)
    assert by_hand(tmp_path).read_bytes() == server.body
    out, err = capsys.readouterr()
    if terminal:
        assert "cifar-100-binary.tar.gz" in out
        assert "2.0/2.0 MB" in out
    else:
        assert out == ""
    assert err == ""


def test_preparation_shows_and_leaves_no_nonsense(
    with_archive, tmp_path_factory, monkeypatch, capsys
):
    temporary = tmp_path_factory.mktemp("temporary")
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    data.load("cifar100", data_dir=with_archive)
    assert not list(temporary.iterdir())
    shown = capsys.readouterr().err
    assert "Generating" in shown  # The bars of the work itself are not lost.
    assert "Dl " not in shown
