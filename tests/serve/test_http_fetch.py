"""Remote images and videos: which addresses are asked, and how much is read from them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("uvicorn")

from vlm.common.errors import UserError
from vlm.serve.http import fetch
from vlm.serve.http.fetch import Fetcher, FetchError, is_public
from vlm.serve.http.limits import Limits

from .net import IMAGE, PUBLIC, Net, response

LIMITS = Limits(medium_mib=1)
# fmt: off
PRIVATE = [
    "127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "100.100.100.200", "0.0.0.0", "0.1.2.3", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
    "192.0.0.8", "192.0.2.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "192.88.99.1", "168.63.129.16", "::1",
    "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fd00:ec2::254", "ff02::1", "fec0::1", "::ffff:127.0.0.1",
    "::ffff:93.184.216.34", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:7f00:1::",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2", "2001:db8::1", "3fff::1", "100::1", "2606:2800:220:1::1%1", "nonsense",
    "0x7f.1", "2130706433",
]
REFUSED = [
    "http://b.example.org/", "http://example.org/", "http://xa.example.org/", "http://a.example.org.evil.org/",
    "http://localhost/", "http://localhost./", "http://127.0.0.1/", "http://2130706433/", "http://0x7f000001/",
    "http://0177.0.0.1/", "http://127.1/", "http://[::1]/", "http://[::ffff:7f00:1]/", "http://0/",
    "http://a.example.org:22/", "http://a.example.org:0/", "http://a.example.org:8080/",
    "http://a.example.org:99999/", "http://user@a.example.org/", "http://user:pw@a.example.org/",
    "http://a.example.org@evil.org/", "http://evil.org#@a.example.org/", "http://a.example.org%2eevil.org/",
    "http://a.example.org\\@evil.org/", "ftp://a.example.org/", "file:///etc/passwd", "gopher://a.example.org/",
    "//a.example.org/", "http:", "http://", "http:/a.example.org/", "https:a.example.org", "/etc/passwd",
    "data:image/png;base64,AAAA", "javascript:alert(1)", "http://[a.example.org/", "http://a..example.org/",
    "http://-a.example.org/", "http://a_.example.org/", "unix:///var/run/docker.sock",
    "http://a.example.org\u3002evil.org/", "http://\u24d0.example.org/",
]
# fmt: on


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Net:
    found = Net()
    monkeypatch.setattr(fetch, "resolve", found.resolve)
    monkeypatch.setattr(fetch, "connect", found.connect)
    return found


def get(
    net: Net, url: str, hosts: tuple[str, ...] = ("a.example.org",), most: int | None = None, limits: Limits = LIMITS
) -> bytes:
    async def run() -> bytes:
        try:
            return await Fetcher(hosts, limits).fetch(url, "image", most)
        finally:
            await net.close()

    return asyncio.run(run())


def refusal(net: Net, url: str, hosts: tuple[str, ...] = ("a.example.org",)) -> str:
    with pytest.raises(FetchError) as caught:
        get(net, url, hosts)
    return str(caught.value)


def test_an_image_from_the_checked_address(net: Net) -> None:
    net.pages["/cat.png?size=1"] = [response()]
    assert get(net, "http://A.example.org/cat.png?size=1#top") == IMAGE
    assert get(net, "https://a.example.org./cat.png?size=1") == IMAGE
    assert net.connected == [(PUBLIC, 80, None), (PUBLIC, 443, "a.example.org")]  # never the name
    assert net.looked_up == ["a.example.org"] * 2
    head = net.requests[0]
    assert "Host: a.example.org\r\n" in head and "Accept-Encoding: identity\r\n" in head


@pytest.mark.parametrize(
    "address",
    PRIVATE,
)
def test_addresses_that_are_not_of_the_internet(net: Net, address: str) -> None:
    assert not is_public(address)
    net.answers["a.example.org"] = [[PUBLIC, address]]  # one is enough
    assert refusal(net, "http://a.example.org/") == refusal_of_nobody()
    assert not net.connected


@pytest.mark.parametrize("address", [PUBLIC, "8.8.8.8", "2606:4700:4700::1111", "2001:4860:4860::8888", "172.32.0.1"])
def test_addresses_of_the_internet(address: str) -> None:
    assert is_public(address)


def refusal_of_nobody() -> str:
    """What is said of an address that cannot be fetched, whatever the reason."""
    return str(fetch._unreachable("image"))


def test_refused_and_dead_addresses_cannot_be_told_apart(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: Any) -> Any:
        raise OSError("internal detail 10.1.2.3")

    monkeypatch.setattr(fetch, "connect", fails)
    assert refusal(net, "http://a.example.org/") == refusal_of_nobody()
    monkeypatch.setattr(fetch, "resolve", fails)
    assert refusal(net, "http://a.example.org/") == refusal_of_nobody()


@pytest.mark.parametrize(
    "url",
    REFUSED
    + [
        "",
        " http://a.example.org/",
        "http://a.example.org/ x",
        "http://a.example.org/\r\nX: y",
        "http://a.example.org/\0",
    ]
    + ["http://a.example.org/" + "a" * 9000, "http://a.example.org/é", "http://" + "a." * 200 + "example.org/"],
)
def test_addresses_that_are_not_even_looked_up(net: Net, url: str) -> None:
    text = refusal(net, url, ("a.example.org", "*.allowed.org"))
    assert not net.looked_up and not net.connected
    assert "passwd" not in text and "evil" not in text


@pytest.mark.parametrize(
    ("entry", "url", "is_allowed"),
    [
        ("*.example.org", "http://b.example.org/", True),
        ("*.example.org", "http://c.b.example.org/", True),
        ("*.example.org", "http://example.org/", False),
        ("*.example.org", "http://badexample.org/", False),
        ("A.Example.org", "http://a.example.org/", True),
        ("a.example.org", "http://a.example.org:443/", True),
        ("a.example.org:8443", "http://a.example.org:8443/", True),
        ("a.example.org:8443", "http://a.example.org/", False),
        (PUBLIC, f"http://{PUBLIC}/", True),
        ("127.0.0.1", "http://127.0.0.1/", False),
    ],
)
def test_the_allow_list(net: Net, entry: str, url: str, is_allowed: bool) -> None:
    net.pages["/"] = [response()]
    if is_allowed:
        assert get(net, url, (entry,)) == IMAGE
    else:
        refusal(net, url, (entry,))
        assert not net.connected


@pytest.mark.parametrize(
    "entry", ["*", "*.org", "http://a.org", "a.org/x", "", "org", "1.2", "a.org:x", "[::1]", "a b.org"]
)
def test_entries_that_are_refused(entry: str) -> None:
    with pytest.raises(UserError, match="not a host name"):
        Fetcher([entry], LIMITS)


def test_off_without_a_list(net: Net) -> None:
    assert "fetches no addresses" in refusal(net, "http://a.example.org/", ())
    assert not Fetcher([], LIMITS) and not net.looked_up


def test_a_second_answer_of_the_name_server_changes_nothing(net: Net) -> None:
    """Rebinding: public when it is checked, private when it is used."""
    net.pages["/"] = [response()]
    net.answers["a.example.org"] = [[PUBLIC], ["127.0.0.1"]]
    assert get(net, "http://a.example.org/") == IMAGE
    assert net.looked_up == ["a.example.org"] and net.connected == [(PUBLIC, 80, None)]
    assert refusal(net, "http://a.example.org/") == refusal_of_nobody()  # the next request sees the second answer


@pytest.mark.parametrize(
    ("location", "is_followed"),
    [
        ("/end", True),
        ("http://a.example.org/end", True),
        ("//a.example.org/end", True),
        ("http://127.0.0.1/end", False),
        ("http://169.254.169.254/latest/meta-data/", False),
        ("http://b.example.org/end", False),
        ("file:///etc/passwd", False),
        ("http://a.example.org:22/end", False),
        ("http://user@a.example.org/end", False),
        ("http://private.example.net/end", False),
        ("http://[::1", False),
        ("", False),
    ],
)
def test_redirects_are_checked_again(net: Net, location: str, is_followed: bool) -> None:
    net.answers["private.example.net"] = [["10.0.0.1"]]
    net.pages = {"/": [response(b"", 302, "text/html", f"Location: {location}")], "/end": [response()]}
    hosts = ("a.example.org", "private.example.net")
    if is_followed:
        assert get(net, "http://a.example.org/", hosts) == IMAGE
    else:
        refusal(net, "http://a.example.org/", hosts)
        assert all(address == PUBLIC and port == 80 for address, port, _ in net.connected)
        assert all("meta-data" not in head for head in net.requests)


def test_redirects_end(net: Net) -> None:
    for k in range(5):
        net.pages[f"/{k}"] = [response(b"", 307, "text/html", f"Location: /{k + 1}")]
    net.pages["/5"] = [response()]
    assert get(net, "http://a.example.org/2") == IMAGE
    assert "more than 3 redirects" in refusal(net, "http://a.example.org/1")
    assert "from https to http" in refusal_of_downgrade(net)


def refusal_of_downgrade(net: Net) -> str:
    net.pages["/s"] = [response(b"", 301, "text/html", "Location: http://a.example.org/5")]
    return refusal(net, "https://a.example.org/s")


BOMB = b"HTTP/1.1 200 OK\r\nContent-Type: image/png\r\n"


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([response(bytes(2 << 20))], "larger than the 1 MiB"),
        ([BOMB + b"\r\n", *[bytes(1 << 16)] * 40], "larger than the 1 MiB"),  # without a length
        ([BOMB + b"Content-Length: 99999999999999999999999999\r\n\r\n"], "larger|cannot be fetched"),
        ([BOMB + b"Content-Encoding: gzip\r\nContent-Length: 3\r\n\r\nabc"], "compressed"),
        ([response(kind="text/html")], "content type"),
        ([response(kind="video/mp4")], "content type"),
        ([response(status=404)], "status 404"),
        ([response(status=206)], "status 206"),
        ([b"nonsense\r\n\r\n"], "cannot be fetched"),
        ([b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 20_000], "cannot be fetched"),
        ([BOMB + b"Content-Length: 10\r\n\r\nabc"], "cannot be fetched"),
        ([b"HTTP/1.1 100 Continue\r\n\r\n" * 3 + b""], "cannot be fetched"),
        ([b""], "cannot be fetched"),
    ],
)
def test_bodies_that_are_refused(net: Net, parts: list[bytes], said: str) -> None:
    net.pages["/"] = parts
    assert re.search(said, refusal(net, "http://a.example.org/"))


def test_slow_answers_and_smaller_limits(net: Net) -> None:
    net.pages["/"] = [response()]
    with pytest.raises(FetchError, match="larger than"):
        get(net, "http://a.example.org/", most=500)
    net.pause = 0.2
    net.pages["/"] = [bytes([byte]) for byte in response()]
    with pytest.raises(FetchError, match=r"within 0\.5 seconds"):
        get(net, "http://a.example.org/", limits=Limits(stall_seconds=0.5))


def test_a_chunked_answer(net: Net) -> None:
    chunk: Callable[[bytes], bytes] = lambda data: f"{len(data):x}\r\n".encode() + data + b"\r\n"  # noqa: E731
    net.pages["/"] = [BOMB + b"Transfer-Encoding: chunked\r\n\r\n", chunk(b"ab"), chunk(b"cd"), b"0\r\n\r\n"]
    assert get(net, "http://a.example.org/") == b"abcd"


def test_the_real_name_server_and_connection() -> None:
    """Without replaced parts: this machine's own name is not fetched."""

    async def run() -> list[str]:
        return await fetch.resolve("localhost", 80)

    assert not any(map(is_public, asyncio.run(run())))
