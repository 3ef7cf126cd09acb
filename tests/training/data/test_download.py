"""Downloads from a server on this machine: cut, stalled, resumed, wrong."""

import contextlib
import http.server
import pathlib
import socket
import threading

import filelock
import pytest

from tests.support.cifar_archives import assert_holds, by_hand, register
from training import data, errors
from training.data import download

pytest_plugins = ["tests.support.cifar_archives"]  # for its fixtures


def test_no_network_is_reported_at_once(with_archive):
    place = by_hand(with_archive)
    place.unlink()
    with pytest.raises(errors.DataError) as caught:
        data.load("cifar100", data_dir=with_archive)
    for part in (f"http://127.0.0.1:9/{place.name}", str(place), "--data-dir"):
        assert part in str(caught.value)
    assert not list(place.parent.iterdir())


def test_a_name_look_up_that_does_not_end_is_given_up(with_archive, monkeypatch):
    assert download._LOOKUP_SECONDS < 8
    monkeypatch.setattr(download, "_LOOKUP_SECONDS", 0.3)
    given_up = threading.Event()

    def hang(*_, **__):
        given_up.wait(30)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    by_hand(with_archive).unlink()
    with pytest.raises(errors.DataError, match=r"no answer in 0\.3 s"):
        data.load("cifar100", data_dir=with_archive)
    given_up.set()


class _Server(http.server.ThreadingHTTPServer):
    """Serves one body, and can be made to do it badly.

    Attributes:
      body: what is served under every path.
      status: of every answer.
      ranges: whether a request for a range is understood.
      cut: bytes of the next body after which the connection ends, if not None.
      before_cut: called at that point.
      asked: the range asked for and the bytes sent, of each GET.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.body, self.status = b"", 200
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
    """A data directory whose archive is served instead of being there."""
    server.body = by_hand(with_archive).read_bytes()
    register(monkeypatch, with_archive, url=server.url)
    by_hand(with_archive).unlink()
    return with_archive


def _part(root):
    return by_hand(root).with_name("cifar-100-binary.tar.gz.part")


def _assert_arrives(root, contents):
    """Asserts that the set can be read now and that nothing unfinished is left."""
    dataset = data.load("cifar100", data_dir=root, validation_fraction=0)
    assert_holds(dataset, contents)
    assert _files(root) == {by_hand(root)}


def _files(root):
    return {path for path in by_hand(root).parent.iterdir() if path.name != ".lock"}


def test_cifar_is_downloaded_once(to_download, original, server):
    _assert_arrives(to_download, original[1])
    _assert_arrives(to_download, original[1])
    assert server.asked == [(None, len(server.body))]


@pytest.mark.parametrize("is_stalled", [False, True])
def test_a_broken_download_is_continued(
    is_stalled, to_download, original, server, monkeypatch
):
    server.cut = len(server.body) // 2
    given_up = threading.Event()
    if is_stalled:
        monkeypatch.setattr(download, "_STALL_SECONDS", 0.3)
        server.before_cut = lambda: given_up.wait(20)
    with pytest.raises(errors.DataError, match=r"broke off .* continue it") as caught:
        data.load("cifar100", data_dir=to_download)
    given_up.set()
    for part in (server.url, str(by_hand(to_download)), "--data-dir"):
        assert part in str(caught.value)
    assert ("Timeout" in str(caught.value)) == is_stalled
    # Only the rest of it is asked for.
    kept = _part(to_download).stat().st_size
    assert 0 < kept < len(server.body)
    assert _part(to_download).read_bytes() == server.body[:kept]
    server.asked.clear()
    _assert_arrives(to_download, original[1])
    assert server.asked == [(f"bytes={kept}-", len(server.body) - kept)]


def test_a_server_without_ranges_sends_everything(to_download, original, server):
    _part(to_download).write_bytes(b"x" * 1000)
    server.ranges = False
    _assert_arrives(to_download, original[1])
    assert server.asked == [("bytes=1000-", len(server.body))]


@pytest.mark.parametrize("surplus", [0, 1])
def test_a_part_of_at_least_full_size(surplus, to_download, original, server):
    _part(to_download).write_bytes(server.body + b"x" * surplus)
    _assert_arrives(to_download, original[1])
    assert server.asked == [(None, len(server.body))] * surplus


@pytest.mark.parametrize(("status", "kept"), [(404, b""), (503, b"begun")])
def test_a_server_without_the_archive_is_not_asked_again(
    status, kept, to_download, server
):
    if kept:
        _part(to_download).write_bytes(kept)
    server.status, server.ranges, server.body = status, False, b"No such page"
    with pytest.raises(errors.DataError, match=str(status)) as caught:
        data.load("cifar100", data_dir=to_download)
    assert "--data-dir" in str(caught.value)
    assert len(server.asked) == 1
    left = {path: path.read_bytes() for path in _files(to_download)}
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
    assert not _files(to_download)
    server.body = official
    _assert_arrives(to_download, original[1])


_FULL = pathlib.Path("/dev/full")  # Linux's own full disk.


@pytest.mark.skipif(not _FULL.exists(), reason="needs /dev/full")
def test_a_full_disk_is_reported(to_download):
    _part(to_download).symlink_to(_FULL)
    with pytest.raises(errors.DataError, match="No space left on device"):
        data.load("cifar100", data_dir=to_download)


def test_two_processes_do_not_write_the_same_part(to_download, original, server):
    with (
        filelock.FileLock(by_hand(to_download).with_name(".lock")),
        pytest.raises(errors.DataError, match="another process"),
    ):
        data.load("cifar100", data_dir=to_download)
    assert server.asked == []
    _assert_arrives(to_download, original[1])
