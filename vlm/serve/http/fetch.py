"""Remote images and videos: fetched from hosts of an allow-list alone, at public addresses alone."""

from __future__ import annotations

import asyncio
import ipaddress
import re
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urljoin, urlsplit

import h11

from vlm.common.errors import DataError, UserError
from vlm.serve.http.limits import Limits

REDIRECTS = 3
LONGEST_URL = 8192
AT_A_TIME = 8
"""Downloads of a server that run together; further ones wait."""
CHUNK = 1 << 16
MIB = 1 << 20
PORTS = {"http": 80, "https": 443}

Kind = Literal["image", "video"]

_LABEL = r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?"
_NAME = re.compile(rf"(?=.{{1,253}}$){_LABEL}(?:\.{_LABEL})*")
_NUMERIC_END = re.compile(r"(?:^|\.)(?:[0-9]+|0x[0-9a-f]*)$")
"""A name that ends so is read as an IPv4 address by some resolvers: 2130706433, 0x7f.1, 127.1."""

_REFUSED = [
    ipaddress.ip_network(block)
    for block in (
        *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12"),
        *("192.0.0.0/24", "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24"),
        *("203.0.113.0/24", "224.0.0.0/3"),
        "168.63.129.16/32",  # public by its number, and inside of Azure the machine's own control
        *("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"),  # Teredo and others, examples, 6to4
    )
]
_IPV6_PUBLIC = ipaddress.ip_network("2000::/3")
"""The rest of IPv6 is loopback, link-local, multicast, unassigned, or an IPv4 address in disguise."""


class FetchError(DataError):
    """A remote image or video that is not fetched; the message tells nothing of the network that the server is in."""


@dataclass(frozen=True)
class Address:
    """A checked URL, taken apart.

    Attributes:
        url: the whole.
        scheme: http or https.
        host: lower case, without a final dot.
        port: of the URL, or the scheme's.
        target: path and query as they are sent.
    """

    url: str
    scheme: str
    host: str
    port: int
    target: str


def is_public(address: str) -> bool:
    """Whether an IP address, in its usual spelling, is one of the public internet."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if ip.version == 6 and (ip.scope_id is not None or ip not in _IPV6_PUBLIC):
        return False
    return ip.is_global and not ip.is_multicast and not any(ip in net for net in _REFUSED if net.version == ip.version)


async def resolve(host: str, port: int) -> list[str]:
    """The IP addresses of a host. Raises OSError."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(item[4][0]) for item in found]


async def connect(
    address: str, port: int, context: ssl.SSLContext | None, host: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to ``address`` itself; the certificate is that of ``host``. Raises OSError."""
    name = host if context is not None else None
    return await asyncio.open_connection(address, port, ssl=context, server_hostname=name, limit=CHUNK)


class Fetcher:
    """Downloads what a request names, within limits; it is off while no host is allowed.

    A redirect is a further address with the same checks. The name of a host is looked up once: all of its addresses
    must be public, and the connection goes to one of those, so that a second answer of the name server changes nothing.

    Example:
        >>> fetcher = Fetcher(["images.example.org", "*.cdn.example.org", "media.example.org:8443"], Limits())
        >>> data = await fetcher.fetch("https://images.example.org/cat.jpg", "image")
    """

    def __init__(self, hosts: Sequence[str], limits: Limits) -> None:
        """Take the allow-list.

        Args:
            hosts: ``name``, ``*.name`` for every name below, each on ports 80 and 443; ``name:port`` for another port.
            limits: ``medium_mib`` and ``stall_seconds``, here for a whole download, are used.

        Raises:
            UserError: an entry that is not of this form.
        """
        self.hosts = [_entry(host) for host in hosts]
        self.most = limits.medium_mib * MIB
        self.seconds = limits.stall_seconds
        self._free = asyncio.Semaphore(AT_A_TIME)
        self._tls: ssl.SSLContext | None = None

    def __bool__(self) -> bool:
        return bool(self.hosts)

    async def fetch(self, url: str, kind: Kind | None = None, most: int | None = None) -> bytes:
        """The bytes at an address.

        Args:
            url: an http(s) address.
            kind: what is expected there; the content type must say so. None: either.
            most: bytes, if fewer than ``medium_mib``.

        Raises:
            FetchError: not allowed, unreachable, too large, too slow or of another type.
        """
        if not self.hosts:
            raise FetchError(f"{_what(kind)}: this server fetches no addresses", fix="send a data URL")
        most = self.most if most is None else min(most, self.most)
        try:
            async with self._free:
                return await asyncio.wait_for(self._follow(url, kind, most), self.seconds)
        except (asyncio.TimeoutError, TimeoutError):
            raise FetchError(
                f"{_what(kind)}: not fetched within {self.seconds:g} seconds", fix="send a data URL"
            ) from None
        except (OSError, h11.ProtocolError, ValueError):  # ssl.SSLError is an OSError; one message for all
            raise _unreachable(kind) from None

    async def _follow(self, url: str, kind: Kind | None, most: int) -> bytes:
        for _ in range(REDIRECTS + 1):
            result = await self._once(self.check(url, kind), kind, most)
            if isinstance(result, bytes):
                return result
            url = result
        raise FetchError(f"{_what(kind)}: more than {REDIRECTS} redirects", fix="send the final address")

    def check(self, url: str, kind: Kind | None) -> Address:
        """The address taken apart. Raises FetchError: not of a form or host that is allowed; nothing is looked up."""
        if len(url) > LONGEST_URL or not re.fullmatch(r"[!-\[\]-~]+", url):  # printable ASCII without a backslash
            fix = "escape other characters as %XX, and write international host names in Punycode"
            raise FetchError(f"{_what(kind)}: not an address of up to {LONGEST_URL} plain characters", fix=fix)
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise FetchError(f"{_what(kind)}: not an address that can be read") from None
        if parts.scheme not in PORTS or not parts.hostname:
            raise FetchError(f"{_what(kind)}: only http and https addresses are fetched", fix="send a data URL")
        if "@" in parts.netloc:
            raise FetchError(f"{_what(kind)}: an address with a user name or password is not fetched")
        host = parts.hostname.removesuffix(".")
        if not (_NAME.fullmatch(host) and not _NUMERIC_END.search(host)) and not _is_ip(host):
            raise self._not_listed(kind)
        port = port if port is not None else PORTS[parts.scheme]
        if not any(_allows(entry, host, port) for entry in self.hosts):
            raise self._not_listed(kind)
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        return Address(url, parts.scheme, host, port, target)

    def _not_listed(self, kind: Kind | None) -> FetchError:
        return FetchError(
            f"{_what(kind)}: the host is not among those from which this server fetches", fix="send a data URL"
        )

    async def _once(self, address: Address, kind: Kind | None, most: int) -> bytes | str:
        """The bytes at an address, or the address to which it redirects."""
        found = [address.host] if _is_ip(address.host) else await resolve(address.host, address.port)
        if not found or not all(map(is_public, found)):
            raise _unreachable(kind)
        reader, writer = await self._open(found, address)
        try:
            return await _download(reader, writer, address, kind, most)
        finally:
            writer.transport.abort()  # a polite end would wait for the other side

    async def _open(self, found: list[str], address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the first of the addresses that answers."""
        if address.scheme == "https" and self._tls is None:
            self._tls = ssl.create_default_context()
        context = self._tls if address.scheme == "https" else None
        error: OSError = OSError("no address")
        for item in dict.fromkeys(found[:4]):
            try:
                return await connect(item, address.port, context, address.host)
            except OSError as caught:
                error = caught
        raise error


async def _download(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, address: Address, kind: Kind | None, most: int
) -> bytes | str:
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=CHUNK)
    writer.write(connection.send(_request(address)) + connection.send(h11.EndOfMessage()))
    await writer.drain()
    data, response = bytearray(), None
    async for event in _events(connection, reader):
        if isinstance(event, h11.Response):
            response = event
            headers = {name.decode("latin-1"): value.decode("latin-1").strip() for name, value in event.headers}
            if event.status_code in (301, 302, 303, 307, 308) and "location" in headers:
                return _next(address, headers["location"], kind)
            _check_headers(event.status_code, headers, kind, most)
        elif isinstance(event, h11.Data):
            data += event.data
            if len(data) > most:
                raise _too_large(kind, most)
        elif isinstance(event, h11.EndOfMessage) and response is not None:
            return bytes(data)
    raise _unreachable(kind)  # the connection ended before the response


def _request(address: Address) -> h11.Request:
    host = f"[{address.host}]" if ":" in address.host else address.host
    named = host if address.port == PORTS[address.scheme] else f"{host}:{address.port}"
    # a compressed answer could be a bomb; none is asked for, and none is taken
    headers = [("Host", named), ("Accept-Encoding", "identity"), ("User-Agent", "vlm"), ("Connection", "close")]
    return h11.Request(method="GET", target=address.target, headers=headers)


async def _events(connection: h11.Connection, reader: asyncio.StreamReader) -> AsyncIterator[Any]:
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(CHUNK))
        elif event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
            return
        else:
            yield event


def _check_headers(status: int, headers: dict[str, str], kind: Kind | None, most: int) -> None:
    if status != 200:
        raise FetchError(f"{_what(kind)}: the address answered with status {status}")
    if headers.get("content-encoding", "identity").lower() != "identity":
        raise FetchError(f"{_what(kind)}: the address answered with a compressed body, which is not read")
    kinds = (kind,) if kind else ("image", "video")
    if not headers.get("content-type", "").lower().startswith(tuple(f"{item}/" for item in kinds)):
        raise FetchError(f"{_what(kind)}: the address did not answer with a content type of {' or '.join(kinds)}")
    length = headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit() or int(length[:20]) > most:
        raise _too_large(kind, most)


def _next(address: Address, location: str, kind: Kind | None) -> str:
    try:
        url = urljoin(address.url, location)
        scheme = urlsplit(url).scheme
    except ValueError:
        raise _unreachable(kind) from None
    if address.scheme == "https" and scheme == "http":
        raise FetchError(f"{_what(kind)}: the address redirects from https to http")
    return url


def _what(kind: Kind | None) -> str:
    return kind or "image or video"


def _unreachable(kind: Kind | None) -> FetchError:
    """One message, so that nobody learns which addresses are there."""
    return FetchError(f"{_what(kind)}: the address cannot be fetched", fix="send a data URL")


def _too_large(kind: Kind | None, most: int) -> FetchError:
    return FetchError(f"{_what(kind)}: larger than the {most / MIB:.3g} MiB that are allowed", fix="shrink it")


def _is_ip(host: str) -> bool:
    try:
        return str(ipaddress.ip_address(host)) == host
    except ValueError:
        return False


def _entry(text: str) -> tuple[str, int | None]:
    """Host and port of a line of the allow-list."""
    host, _, port = text.strip().lower().removesuffix(".").partition(":")
    name = host.removeprefix("*.")
    if (_NAME.fullmatch(name) and "." in name and not _NUMERIC_END.search(name)) or (_is_ip(host) and ":" not in host):
        if not port:
            return host, None
        if port.isascii() and port.isdigit() and 0 < int(port[:6]) < 65536:
            return host, int(port)
    raise UserError(
        f"allowed host {text!r:.100}: not a host name",
        fix="e.g. images.example.org, *.example.org or a.example.org:8443",
    )


def _allows(entry: tuple[str, int | None], host: str, port: int) -> bool:
    name, listed = entry
    if port not in ((80, 443) if listed is None else (listed,)):
        return False
    return host.endswith(name[1:]) if name.startswith("*.") else host == name
