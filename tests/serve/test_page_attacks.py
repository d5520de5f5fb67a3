"""Requests that no browser sends: the page opens nothing but uploads and examples, and tells nothing of other files."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("gradio")

from vlm.common.errors import UserError
from vlm.common.types import Image
from vlm.inference.engine import Engine
from vlm.serve.gradio import app as gradio_app
from vlm.serve.gradio import branches, display, mount, theme
from vlm.serve.gradio.uploads import KEPT_SECONDS, MAX_FOLDER, MIB, UploadFolder, upload_folder

from ..inference.small import CASE, write_config

IMAGE = CASE / "image.png"
JOIN = "/gradio_api/queue/join"
META = {"_type": "gradio.FileData"}
SESSIONS = itertools.count()
SETTINGS = [None, False, 1.0, 0.9, 50, 1, 3, 1.0, None, "", -1]
"""Inputs of the function that writes an answer."""


class Visitor:
    """A client of the page's queue that knows the page's functions by name."""

    def __init__(self, address: str) -> None:
        self.http = httpx.Client(base_url=address, timeout=30)
        config = self.http.get("/config").json()
        names = {c["id"]: c["props"].get("elem_id") or c["props"].get("label") for c in config["components"]}
        self.inputs = {d["id"]: [names.get(i) for i in d["inputs"]] for d in config["dependencies"]}
        self.ask_id = next(
            k for k, found in self.inputs.items() if found[:3] == ["question", "Several images", "models"]
        )
        self.write_id = next(k for k, found in self.inputs.items() if "system" in found)
        self.camera_id = next(k for k, found in self.inputs.items() if found == ["camera", "question"])
        self.session = f"s{next(SESSIONS)}"

    def join(self, number: int, data: list[Any], **more: Any) -> httpx.Response:
        return self.http.post(JOIN, json={"data": data, "fn_index": number, "session_hash": self.session, **more})

    def call(self, number: int, data: list[Any]) -> list[dict[str, Any]]:
        """The messages of one call that the page accepts, until it is complete."""
        answer = self.join(number, data)
        assert answer.status_code == 200, answer.text
        found = []
        with self.http.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in filter(None, stream.iter_lines()):
                found.append(json.loads(line.removeprefix("data:")))
                if found[-1]["msg"] == "process_completed":
                    break
        return found

    def ask(self, question: Any, *files: Any, keep: bool = False) -> list[dict[str, Any]]:
        return self.call(self.ask_id, [{"text": question, "files": list(files)}, keep, ["small"], None])

    def upload(self, content: bytes, name: str = "a.png") -> str:
        answer = self.http.post("/gradio_api/upload", files={"files": (name, content)})
        assert answer.status_code == 200, answer.text
        return answer.json()[0]


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("page")
    (folder / "example.png").write_bytes(IMAGE.read_bytes())
    (folder / "examples.jsonl").write_text('{"image": "example.png", "question": "What?"}')
    engine = Engine.load(write_config(folder))
    page = gradio_app.launch(
        {"small": engine},
        port=gradio_app.free_port("127.0.0.1", None),
        generation={"max_new_tokens": 3, "do_sample": False},
        examples=folder / "examples.jsonl",
        max_upload=1,
        block=False,
    )
    yield page.local_url.rstrip("/")
    page.close()


@pytest.fixture
def visitor(address: str) -> Iterator[Visitor]:
    found = Visitor(address)
    yield found
    found.http.close()


def forbidden(tmp_path: Path) -> dict[str, Any]:
    """Paths that name no upload: each kind once, existing and not."""
    folder = upload_folder().root
    secret = tmp_path / "secret.png"
    secret.write_bytes(IMAGE.read_bytes())
    link, pipe, inner = folder / "link.png", folder / "pipe.png", folder / "folder.png"
    if not link.is_symlink():
        link.symlink_to(secret)
        os.mkfifo(pipe)
        inner.mkdir()
        (folder / "linked").symlink_to(tmp_path)
        (folder / "large.png").write_bytes(b"0" * (MIB + 1))
    return {
        "a file": "/etc/hostname",
        "an image": str(secret),
        "an image of the working folder": "tests/golden/minigpt4/open/image.png",
        "no file": "/nothing/here.png",
        "a device": "/dev/zero",
        "a process": "/proc/self/environ",
        "up and out": f"{folder}/../{secret.name}",
        "up and out, deep": f"{folder}/a/../../../../../../../../etc/hostname",
        "a link": str(link),
        "through a linked folder": str(folder / "linked" / secret.name),
        "a pipe": str(pipe),
        "a folder": str(inner),
        "the folder itself": str(folder),
        "the folder's neighbour": f"{folder}x/a.png",
        "absent in the folder": str(folder / ("0" * 64) / "a.png"),
        "too large": str(folder / "large.png"),
        "an address": "http://127.0.0.1:9/a.png",
        "a file address": "file:///etc/hostname",
        "inline data": "data:image/png;base64,AAAA",
        "a null byte": f"{folder}/a.png\0.png",
        "nothing": None,
        "a number": 3,
        "a list": ["/etc/hostname"],
        "a home": "~/.bashrc",
    }


def test_no_other_file_reaches_any_widget(visitor: Visitor, tmp_path: Path) -> None:
    said = set()
    for what, path in forbidden(tmp_path).items():
        for extra in ({}, {"meta": META}, {"meta": META, "url": "http://127.0.0.1:9/x", "is_stream": True}):
            medium = {"path": path, **extra}
            for number, data in (
                (visitor.ask_id, [{"text": "What?", "files": [medium]}, False, ["small"], None]),
                (visitor.ask_id, [{"text": medium, "files": []}, False, ["small"], None]),
                (visitor.ask_id, [{"text": "What?", "files": [{"image": medium}]}, False, [medium], None]),
                (visitor.ask_id, [[medium], False, ["small"], {"shown": [medium]}]),
                (visitor.camera_id, [medium, None]),
            ):
                answer = visitor.join(number, data)
                assert answer.status_code == 400, (what, data)
                said.add(answer.text)
            plain = [{"text": "What?", "files": []}, False, ["small"], None]
            assert visitor.join(visitor.ask_id, plain, event_data=medium).status_code == 400
    assert len(said) == 1 and "not an upload" in said.pop()  # nothing tells which of them exist


def test_direct_calls_and_other_routes_are_closed(visitor: Visitor) -> None:
    data = [{"text": "What?", "files": [{"path": "/etc/hostname"}]}, False, ["small"], None]
    body = {"data": data, "fn_index": 0, "session_hash": "x"}
    for route in (
        "run/predict",
        "run/ask",
        "api/ask",
        "call/ask",
        "call/v2/ask",
        "component_server",
        "process_recording",
    ):
        for slash in ("", "/"):
            assert visitor.http.post(f"/gradio_api/{route}{slash}", json=body).status_code == 404
    for route in (
        "/gradio_api/proxy=https://example.com/a",
        "/gradio_api/deep_link?session_hash=x",
        "/gradio_api/info",
        "/gradio_api/openapi.json",
        "/gradio_api/stream/a/b/c/playlist-file",
        "/gradio_api/file/etc/hostname",
        "/monitoring",
        "/monitoring/summary",
        "/docs",
        "/openapi.json",
        "/gradio_api/queue/status",
    ):
        assert visitor.http.get(route).status_code == 404, route
    assert visitor.http.put(JOIN, json=body).status_code == 404


def test_files_are_served_from_the_folder_only(visitor: Visitor, tmp_path: Path) -> None:
    answers = set()
    for path in forbidden(tmp_path).values():
        if isinstance(path, str) and "\0" not in path:
            answer = visitor.http.get(f"/gradio_api/file={path}", follow_redirects=False)
            answers.add((answer.status_code, answer.text))
    assert len(answers) == 1 and answers.pop()[0] == 404
    mine = visitor.upload(b"<script>alert(1)</script>", "a.html")
    served = visitor.http.get(f"/gradio_api/file={mine}")
    assert served.status_code == 200 and "attachment" in served.headers["content-disposition"]
    assert served.headers["x-content-type-options"] == "nosniff"


def test_uploads_and_examples_are_answered(visitor: Visitor) -> None:
    path = visitor.upload(IMAGE.read_bytes())
    for extra in ({}, {"meta": META, "url": "http://elsewhere/a.png", "orig_name": "a.png"}):
        visitor.session = f"s{next(SESSIONS)}"
        end = visitor.ask("What?", {"path": path, **extra})[-1]
        assert end["success"] and path in json.dumps(end["output"]) and "elsewhere" not in json.dumps(end)
    end = visitor.call(visitor.write_id, SETTINGS)[-1]
    assert end["success"]
    example = next(f for f in upload_folder().root.rglob("example.png"))
    assert visitor.ask("What?", {"path": str(example)})[-1]["success"]


def test_an_upload_is_its_visitors_own(visitor: Visitor, address: str) -> None:
    """Whoever learns the path of an upload can neither read it nor ask about it, unless they have the same file."""
    content = IMAGE.read_bytes() + b"mine"
    path = visitor.upload(content)
    with httpx.Client(base_url=address) as bare:  # without the cookie
        assert bare.get(f"/gradio_api/file={path}").status_code == 404
    other = Visitor(address)
    assert other.http.get(f"/gradio_api/file={path}").status_code == 404
    data = [{"text": "What?", "files": [{"path": path}]}, False, ["small"], None]
    assert other.join(other.ask_id, data).status_code == 400
    for forged in ("", "a" * 21, "../" + "a" * 19):
        other.http.cookies.set("vlm_visitor", forged, domain="127.0.0.1")
        assert other.http.get(f"/gradio_api/file={path}").status_code == 404
    assert visitor.http.get(f"/gradio_api/file={path}").status_code == 200
    fresh = Visitor(address)
    assert fresh.upload(content) == path and fresh.http.get(f"/gradio_api/file={path}").status_code == 200
    cookie = next(c for c in fresh.http.cookies.jar if c.name == "vlm_visitor")
    assert cookie.has_nonstandard_attr("HttpOnly") and cookie.get_nonstandard_attr("SameSite") == "Lax"
    for client in (other, fresh):
        client.http.close()


def test_errors_hold_no_bytes_and_no_paths(visitor: Visitor) -> None:
    for name, content in (
        ("a.png", b"top secret bytes"),
        ("a.json", b'["/etc/hostname"]'),
        ("a.json", json.dumps([[0, 0, 1, 1]]).encode()),
        ("a.json", b"[" * 100_000),
        ("a.mp4", b"#EXTM3U\nfile:///etc/hostname\n"),
        ("<img src=x onerror=alert(1)>.png", b"top secret bytes"),
    ):
        path = visitor.upload(content, name)
        said = visitor.ask("What?", {"path": path})
        text = " ".join(m["log"] for m in said if m["msg"] == "log")
        told = "cannot be read" in text and said[-1]["success"]
        assert told or "Invalid file type" in said[-1]["output"]["error"], (name, said)
        for word in ("secret", "etc", str(upload_folder().root), "<img", "EXTM3U"):
            assert word not in text, (name, word)


def test_requests_of_any_shape(visitor: Visitor) -> None:
    post = visitor.http.post
    assert post(JOIN, content=b"{").status_code == 400
    assert post(JOIN, content=b"[" * 200_000).status_code == 400
    assert post(JOIN, content=b" " * (MIB // 4 + 1)).status_code == 413
    assert post(JOIN, content=(b" " * 65536 for _ in range(8))).status_code == 413
    assert post("/gradio_api/upload", files={"files": ("a.png", b"0" * (MIB + 1))}).status_code == 413
    many = [("files", (f"{k}.png", b"0" * (MIB // 2))) for k in range(4)]
    assert post("/gradio_api/upload", files=many).status_code == 413
    form = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
    chunks = itertools.chain([form], (b"0" * 65536 for _ in range(40)))
    before = sum(f.is_file() for f in upload_folder().root.rglob("*"))
    kind = {"content-type": "multipart/form-data; boundary=x"}
    assert post("/gradio_api/upload", content=chunks, headers=kind).status_code == 413
    assert sum(f.is_file() for f in upload_folder().root.rglob("*")) == before  # what was written is deleted
    assert visitor.join(999, []).status_code >= 400


def test_values_of_any_type(visitor: Visitor) -> None:
    ok = SETTINGS
    assert visitor.call(visitor.write_id, ok)[-1]["success"]  # nothing was asked
    for place, value in ((6, 10**9), (5, 10**6), (1, "yes"), (2, {"a": 1}), (8, 10**30), (9, 7), (10, [1]), (7, "x")):
        visitor.ask("What?")
        visitor.call(visitor.write_id, [*ok[:place], value, *ok[place + 1 :]])
        end = visitor.call(visitor.write_id, ok)[-1]
        assert end["success"], (place, value)
    for box in ({"a": 1}, 7, ["x"], True, {"text": 7, "files": 7}, {"text": None, "files": [{}]}):
        end = visitor.call(visitor.ask_id, [box, False, ["small"], None])[-1]  # no visitor's box sends this
        assert not end["success"] and "pydantic" not in json.dumps(end), box
    for box, chosen in ((None, ["small"]), ({"text": "What?", "files": []}, ["other"])):
        visitor.call(visitor.ask_id, [box, False, chosen, None])
    assert visitor.ask("What?")[-1]["success"]


def test_other_sites_and_names_are_refused(visitor: Visitor) -> None:
    def status(method: str = "POST", **headers: str) -> int:
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        route = JOIN if method == "POST" else "/config"
        return visitor.http.request(method, route, json={"data": []}, headers=names).status_code

    own = str(visitor.http.base_url).rstrip("/")
    for origin in (
        "https://evil.example",
        "null",
        "http://127.0.0.1:1",
        "http://[::1",
        own.replace("http", "https") + ".evil.example",
    ):
        assert status(origin=origin) == 403 == status("GET", origin=origin)
        assert status(origin=origin, x_forwarded_host="evil.example") == 403
    assert status(sec_fetch_site="cross-site") == 403
    for host in ("evil.example", "127.0.0.1.evil.example:7860", "10.0.0.1", "[", ""):
        assert status("GET", host=host) == 403
    assert status(origin=own) not in (403, 404)
    assert status("GET", host="localhost:9999") == 200 == status("GET", host="[::1]:7860")
    headers = visitor.http.get("/").headers
    assert "img-src 'self'" in headers["content-security-policy"]


def test_uploads_expire_and_the_folder_has_a_limit(tmp_path: Path) -> None:
    folder = UploadFolder(tmp_path, max_bytes=MIB)
    (tmp_path / "example.png").write_bytes(b"0")
    folder.keep_present()
    old = time.time() - KEPT_SECONDS - 60
    for name in ("old", "used", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(b"0")
    for file in (tmp_path / "example.png", *tmp_path.glob("old/*"), *tmp_path.glob("used/*")):
        os.utime(file, (old, old))
    os.utime(tmp_path / "old", (old, old))
    assert folder.admit(str(tmp_path / "used" / "a.png"))  # which keeps it for another hour
    assert folder.make_room()
    assert sorted(f.parent.name for f in tmp_path.glob("*/*")) == ["new", "used"]
    assert (tmp_path / "example.png").exists()
    os.utime(tmp_path / "old", (old, old))
    assert folder.make_room() and not (tmp_path / "old").exists()
    with ExitStack() as arriving:
        for _ in range(MAX_FOLDER - 1):
            arriving.enter_context(folder.receiving())
        assert not folder.make_room()  # those that arrive may become as large
    assert folder.make_room()
    for number in range(MAX_FOLDER):
        (tmp_path / f"{number}.png").write_bytes(b"0" * MIB)
    assert not folder.make_room()


def test_nothing_becomes_html() -> None:
    text = "<img src=x onerror=alert(1)> **bold** <b>&amp;</b> `a < b` ```\n<p>&\n``` <script>"
    assert display.markdown(text) == (
        "&lt;img src=x onerror=alert(1)&gt; **bold** &lt;b&gt;&amp;amp;&lt;/b&gt; `a < b` ```\n<p>&\n``` &lt;script&gt;"
    )
    for begun in ("```\n<p>", "~~~\n<p>", "a `` <p> ``"):
        assert display.markdown(begun) == begun
    for text in ("\\`<p>`", "` <p>", "``<p>`", "<p>", "a\n\n<p>\n"):
        assert "<p>" not in display.markdown(text), text
    for text in ("<p> `<b>` &lt;", "~~~\n<p>&amp;\n~~~ <p>", "a & b"):
        assert display.written(display.markdown(text)) == text
    turn = branches.Turn("<i>", (Image("/a/<b>.png"),), replies={"m": branches.Reply("<u>")})
    shown = display.messages([turn], "m")
    assert shown[0]["content"] == [{"path": "/a/<b>.png"}, "&lt;i&gt;"] and shown[1]["content"] == "&lt;u&gt;"
    assert "<b>" not in theme.lane_title("<b>")
    assert "<img" not in display.told(UserError("<img>", fix="x")) and "<img" not in display.unreadable(["<img>"])


def test_sessions_and_what_they_hold_are_bounded(visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(branches, "MEDIA", 2)
    paths = [visitor.upload(IMAGE.read_bytes() + bytes([k])) for k in range(3)]
    said = []
    for path in paths:
        said.append(json.dumps(visitor.ask("What?", {"path": path}, keep=True)))
        visitor.call(visitor.write_id, SETTINGS)
    assert "2 images" not in said[1] and "2 images" in said[2]
    monkeypatch.setattr(branches, "TURNS", 1)
    assert "at most 1 questions" in json.dumps(visitor.ask("What?"))
    assert mount.SESSIONS <= 100 and mount.WAITING <= 100


@pytest.mark.heavy
def test_memory_is_flat(visitor: Visitor) -> None:
    """Conversations that never end, of as many visitors as there are requests."""

    def grow(count: int) -> float:
        for _ in range(count):
            visitor.session = f"m{next(SESSIONS)}"
            assert visitor.ask("What?", {"path": path})[-1]["success"]
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / MIB

    path = visitor.upload(IMAGE.read_bytes())
    before = grow(mount.SESSIONS + 20)
    assert grow(2 * mount.SESSIONS) - before < 20
