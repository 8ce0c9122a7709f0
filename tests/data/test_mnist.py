"""MNIST from a local server and from a folder, with small files in place of the real ones."""

import errno
import gzip
import hashlib
import os
import socket
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pooch
import pytest
import torch

from course_lib.data import mnist
from course_lib.data.mnist import MIRRORS, SHA256, read_idx

module = sys.modules["course_lib.data.mnist"]

IMAGES = torch.randint(256, (3, 28, 28), generator=torch.Generator().manual_seed(0)).byte()
LABELS = torch.tensor([7, 0, 9], dtype=torch.uint8)
IMAGES[0, 0, :2] = torch.tensor([0, 255])


def idx(array):
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return header + array.numpy().tobytes()


FILES = {
    "t10k-images-idx3-ubyte.gz": gzip.compress(idx(IMAGES), mtime=0),
    "t10k-labels-idx1-ubyte.gz": gzip.compress(idx(LABELS), mtime=0),
}


class Mirror(BaseHTTPRequestHandler):
    """Serves /good/, and in /wrong/, /short/ and /absent/ what their names say."""

    def do_GET(self):
        self.server.log.append(self.path)
        _, kind, name = self.path.split("/")
        body = FILES[name]
        self.send_response(404 if kind == "absent" else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write({"wrong": b"x" * len(body), "short": body[:-5]}.get(kind, body))

    def log_message(self, *args):
        pass


@pytest.fixture
def server():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Mirror)
    server.log = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of its own, the small files' hashes, and no folder and no proxy from outside."""
    hashes = {
        name.removesuffix(".gz"): hashlib.sha256(body).hexdigest() for name, body in FILES.items()
    }
    monkeypatch.setattr(module, "SHA256", hashes)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache" / name)
    monkeypatch.delenv("COURSE_DATA_DIR", raising=False)
    monkeypatch.setenv("NO_PROXY", "*")
    return tmp_path / "cache" / "course_lib"


@pytest.fixture
def mirrors(server, cache, monkeypatch):
    """Set the mirrors by the kind of answer they give; "dead" gives none."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        dead = free.getsockname()[1]

    def use(*kinds):
        ports = {"dead": dead}
        urls = [f"http://127.0.0.1:{ports.get(k, server.server_port)}/{k}/" for k in kinds]
        monkeypatch.setattr(module, "MIRRORS", tuple(urls))

    return use


def assert_loaded(images, labels):
    assert images.shape == (3, 1, 28, 28)
    assert images.dtype == torch.float32
    torch.testing.assert_close(images[:, 0], IMAGES / 127.5 - 1, rtol=0, atol=1e-6)
    assert images[0, 0, 0, :2].tolist() == [-1, 1]
    assert labels.dtype == torch.int64
    assert labels.tolist() == [7, 0, 9]


def stored(cache):
    return {path.name: path.read_bytes() for path in cache.iterdir()} if cache.exists() else {}


def test_download_and_cache(mirrors, server, cache):
    mirrors("good")
    assert_loaded(*mnist("test"))
    assert stored(cache) == FILES
    assert len(server.log) == 2
    assert_loaded(*mnist("test"))
    assert len(server.log) == 2  # from the cache


def test_offline_with_a_full_cache(mirrors):
    mirrors("good")
    mnist("test")
    mirrors("dead")
    assert_loaded(*mnist("test"))


@pytest.mark.parametrize("first", ["dead", "absent", "wrong", "short"])
def test_second_mirror_steps_in(mirrors, cache, first):
    mirrors(first, "good")
    assert_loaded(*mnist("test"))
    assert stored(cache) == FILES


@pytest.mark.parametrize("kind", ["dead", "absent", "wrong", "short"])
def test_no_mirror_delivers(mirrors, cache, kind):
    mirrors(kind, "dead")
    with pytest.raises(ConnectionError) as caught:
        mnist("test")
    message = str(caught.value)
    assert "t10k-images-idx3-ubyte.gz; connect to the network, or set COURSE_DATA_DIR" in message
    assert f"/{kind}/: " in message
    assert "/dead/: " in message
    assert stored(cache) == {}


@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b"x" + b[1:], lambda b: b""])
def test_corrupt_cached_file_is_fetched_again(mirrors, cache, damage):
    mirrors("good")
    mnist("test")
    path = cache / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    assert_loaded(*mnist("test"))
    assert stored(cache) == FILES


def test_corrupt_cached_file_is_not_read_offline(mirrors, cache):
    mirrors("good")
    mnist("test")
    (cache / "t10k-labels-idx1-ubyte.gz").write_bytes(b"x")
    mirrors("dead")
    with pytest.raises(ConnectionError, match=r"no mirror delivered t10k-labels-idx1-ubyte\.gz"):
        mnist("test")


def test_full_disk(mirrors, cache, monkeypatch):
    def full(self, url, output_file, *args, **kwargs):
        with open(output_file, "wb") as file:
            file.write(b"half")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", full)
    mirrors("good", "good")
    with pytest.raises(OSError, match=r"images-idx3-ubyte\.gz cannot be stored: .*space") as caught:
        mnist("test")
    assert caught.value.errno == errno.ENOSPC
    assert str(cache) in str(caught.value)
    assert stored(cache) == {}  # no half file


def test_cache_that_cannot_be_made(mirrors, cache):
    cache.parent.write_text("a file where the folder should be")
    mirrors("good")
    with pytest.raises(OSError, match=r"images-idx3-ubyte\.gz cannot be stored: "):
        mnist("test")


@pytest.fixture
def folder(tmp_path, cache):
    path = tmp_path / "folder"
    path.mkdir()
    for name, body in FILES.items():
        (path / name).write_bytes(body)
    return path


def test_folder_as_argument_and_from_the_environment(folder, cache, monkeypatch):
    assert_loaded(*mnist("test", folder=folder))
    assert_loaded(*mnist("test", folder=str(folder)))
    monkeypatch.setenv("COURSE_DATA_DIR", str(folder))
    assert_loaded(*mnist("test"))
    assert stored(cache) == {}


def test_folder_argument_goes_before_the_environment(folder, monkeypatch):
    monkeypatch.setenv("COURSE_DATA_DIR", "/nowhere")
    assert_loaded(*mnist("test", folder=folder))


def test_folder_lacks_a_file(folder):
    (folder / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match=r"labels-idx1-ubyte\.gz does not exist: put"):
        mnist("test", folder=folder)


@pytest.mark.parametrize("damage", [lambda b: b[:-3], lambda b: b[:-1] + b"x", lambda b: b""])
def test_corrupt_file_in_the_folder_is_refused(folder, damage):
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"images-idx3-ubyte\.gz is corrupt"):
        mnist("test", folder=folder)


@pytest.mark.parametrize(("size", "before"), [(28, 0), (29, 0), (32, 2)])
def test_size_adds_a_frame_of_background(folder, size, before):
    images, _ = mnist("test", folder=folder, size=size)
    assert images.shape == (3, 1, size, size)
    inner = (slice(None), slice(None), slice(before, before + 28), slice(before, before + 28))
    torch.testing.assert_close(images[inner][:, 0], IMAGES / 127.5 - 1, rtol=0, atol=1e-6)
    images[inner] = -1
    assert (images == -1).all()


def test_wrong_arguments(folder):
    with pytest.raises(ValueError, match="split must be one of train, test; got 'all'"):
        mnist("all", folder=folder)
    with pytest.raises(ValueError, match="size must be at least 28, got 27"):
        mnist("test", folder=folder, size=27)


def test_the_real_files_are_four_and_the_mirrors_two():
    assert len(SHA256) == 4
    assert all(len(bytes.fromhex(digest)) == 32 for digest in SHA256.values())
    assert len(MIRRORS) >= 2
    assert all(url.startswith("https://") and url.endswith("/") for url in MIRRORS)


@pytest.mark.skipif("COURSE_DATA_DIR" not in os.environ, reason="no folder with the real files")
@pytest.mark.parametrize(("split", "n", "first"), [("train", 60_000, 5), ("test", 10_000, 7)])
def test_real_files(split, n, first):
    images, labels = mnist(split)
    assert images.shape == (n, 1, 28, 28)
    assert labels[0] == first
    assert labels.bincount().min() > 0.08 * n


def test_read_idx():
    for array in (IMAGES, LABELS):
        assert torch.equal(read_idx(idx(array)), array)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "IDX magic"),
        (b"\x00\x00\x08", "IDX magic"),
        (b"\x00\x00\x0d" + idx(LABELS)[3:], "IDX magic 00 00 08, got '00 00 0d'"),
        (b"\x1f\x8b\x08" + idx(LABELS)[3:], "IDX magic"),
        (idx(LABELS)[:6], "must be 0 bytes after 8, got 6"),
        (idx(LABELS)[:-1], "must be 3 bytes after 8, got 10"),
        (idx(LABELS) + b"x", "must be 3 bytes after 8, got 12"),
    ],
)
def test_read_idx_refuses(data, message):
    with pytest.raises(ValueError, match=message):
        read_idx(data)
