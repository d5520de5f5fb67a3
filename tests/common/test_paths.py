"""Files by name: local, URL through the cache, assets; one cache root."""

from __future__ import annotations

import functools
import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vlm.common import paths


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    folder = tmp_path / "served"
    folder.mkdir()
    (folder / "a.txt").write_text("hello")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}/a.txt"
        httpd.shutdown()
        thread.join()


def test_cache_root_order(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("VLM_CACHE", str(tmp_path / "own"))
    assert paths.cache_root() == tmp_path / "own"
    monkeypatch.delenv("VLM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert paths.cache_root() == tmp_path / "vlm"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.cache_root() == tmp_path / ".cache" / "vlm"


def test_a_url_is_fetched_once_into_the_cache(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLM_CACHE", str(tmp_path / "cache"))
    first = paths.local_path(server)
    assert first.is_relative_to(tmp_path / "cache")
    assert first.read_text() == "hello"
    (tmp_path / "served" / "a.txt").unlink()
    assert paths.local_path(server) == first


def test_local_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "x.txt").write_text("here")
    assert paths.local_path("~/x.txt") == tmp_path / "x.txt"
    assert paths.exists("~/x.txt")
    assert not paths.exists(tmp_path / "y")
    assert paths.exists("https://example.org/x")


def test_assets_lie_in_the_package() -> None:
    assert Path(paths.asset("tiny/sizes.json")).is_file()
