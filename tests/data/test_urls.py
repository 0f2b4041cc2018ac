"""URLs: refused by default, fetched within limits where they are allowed, and never from addresses that are not public."""

import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mmblocks.assets import find_media
from mmblocks.chat import image, video
from mmblocks.cli import main
from mmblocks.data.media.urls import UrlLimits, fetch_url, is_public_address
from mmblocks.errors import DataError

HERE = ("127.0.0.1",)
FILES = {"/image.png": find_media("image.png"), "/video.mp4": find_media("video.mp4")}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path in FILES:
            self.answer(200, FILES[self.path].read_bytes())
        elif self.path.startswith("/again/"):
            left = int(self.path.rpartition("/")[2])
            self.answer(302, b"", Location=f"/again/{left - 1}" if left else "/image.png")
        elif self.path == "/elsewhere":
            self.answer(302, b"", Location="http://localhost:1/image.png")
        elif self.path == "/file":
            self.answer(302, b"", Location="file:///etc/passwd")
        elif self.path == "/endless":
            self.send_response(200)
            self.end_headers()
            for _ in range(1000):
                self.wfile.write(bytes(100_000))
        elif self.path == "/slow":
            self.send_response(200)
            self.end_headers()
            for _ in range(100):
                self.wfile.write(b"x")
                self.wfile.flush()
                time.sleep(0.05)
        elif self.path == "/cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half")
        else:
            self.answer(404, b"nothing")

    def answer(self, status, content, **headers):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": len(content)}.items():
            self.send_header(name, str(value))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


class QuietServer(ThreadingHTTPServer):
    def handle_error(self, *_):  # a client that has had enough
        pass


@pytest.fixture(scope="module")
def site():
    server = QuietServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_what_is_allowed_is_fetched(site):
    assert fetch_url(f"{site}/image.png", HERE) == FILES["/image.png"].read_bytes()
    assert fetch_url(f"{site}/again/4", HERE) == FILES["/image.png"].read_bytes()
    assert image(f"{site}/image.png", allow_urls=HERE).source == FILES["/image.png"].read_bytes()
    assert video(f"{site}/video.mp4", allow_urls=HERE).source == FILES["/video.mp4"].read_bytes()


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("/missing", "the server answers 404"),
        ("/again/5", "more than 5 redirects"),
        ("/elsewhere", r"localhost is (127\.0\.0\.1|::1), a private address"),
        ("/file", "file:///etc/passwd: only http and https are fetched"),
        ("/endless", "more than 1,000,000 bytes"),
        ("/slow", "it takes more than 1 s"),
        ("/cut", "cannot be fetched .*IncompleteRead"),
    ],
)
def test_what_a_server_does_wrong_is_said(site, path, says):
    begin = time.monotonic()
    with pytest.raises(DataError, match=says):
        fetch_url(f"{site}{path}", HERE, UrlLimits(seconds=1, bytes=1_000_000))
    assert time.monotonic() - begin < 5


def test_an_announced_size_over_the_limit_is_not_read(site):
    with pytest.raises(DataError, match="more than 10 bytes"):
        fetch_url(f"{site}/image.png", HERE, UrlLimits(bytes=10))


def test_private_addresses_and_hosts_that_are_not_there_are_refused(site):
    with pytest.raises(DataError, match=r"127\.0\.0\.1 is 127\.0\.0\.1, a private address, .*allow the host by name"):
        fetch_url(f"{site}/image.png")
    with pytest.raises(DataError, match="private address"):
        image(f"{site}/image.png", allow_urls=True)
    with pytest.raises(DataError, match=r"cannot be fetched .*download it and pass its path"):
        fetch_url("http://nowhere.invalid/image.png")


@pytest.mark.parametrize(
    ("address", "is_public"),
    [
        ("8.8.8.8", True),
        ("2606:4700::1111", True),
        ("10.0.0.1", False),
        ("172.16.5.4", False),
        ("192.168.1.1", False),
        ("100.64.0.1", False),
        ("169.254.169.254", False),
        ("127.0.0.1", False),
        ("0.0.0.0", False),
        ("224.0.0.1", False),
        ("255.255.255.255", False),
        ("::1", False),
        ("::", False),
        ("fe80::1%eth0", False),
        ("fc00::1", False),
        ("ff02::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True),
        ("64:ff9b::7f00:1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_addresses_that_are_not_of_the_public_internet_are_known(address, is_public):
    assert is_public_address(address) == is_public


def test_urls_are_refused_unless_they_are_allowed(site, capsys):
    words = ["chat", "--image", f"{site}/image.png", "--ask", "How many shapes are there?"]
    assert main(words) == 1
    assert "mmblocks opens no URLs" in capsys.readouterr().err
    assert main([*words, "--allow-urls"]) == 1
    assert "a private address" in capsys.readouterr().err
    assert main([*words, "--allow-urls", "127.0.0.1"]) == 0
    assert capsys.readouterr().out == "3\n"
