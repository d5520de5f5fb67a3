"""Records of tar shards: local files by their headers, remote ones as a stream of bytes; home of webdataset.

Neighbouring members of a tar whose names are equal up to the first dot of the file name form one record. Nothing is
ever unpacked to disk.
"""

from __future__ import annotations

import glob
import http.client
import logging
import os
import re
import tarfile
import time
import urllib.error
import urllib.parse
import urllib.request
import zlib
from collections.abc import Iterator
from contextlib import closing
from functools import cache
from itertools import count, groupby
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple

from vlm.common.errors import DataError
from vlm.common.files import is_hidden, open_regular
from vlm.common.paths import is_url

log = logging.getLogger(__name__)
Members = dict[str, tuple[int, int] | bytes]

MAX_SHARDS = 1_000_000
"""Shards that a brace pattern may name."""

MAX_MEMBER = 512 << 20
"""Bytes of a member of a record; a compressed tar may declare any size."""

MAX_NAME = 1 << 20
"""Bytes of a header that tarfile reads whole: a long name, or pax attributes."""

STORAGES = ("s3", "s3a", "gs", "gcs", "hdfs", "abfs", "abfss", "az", "oss", "memory")
"""Object storages whose addresses fsspec opens."""
OPEN_ATTEMPTS = 3
"""Attempts to open a remote shard before it counts as unreadable."""

_BROKEN = (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, http.client.HTTPException)
"""What damaged tars and broken connections raise."""


class ShardRecord(NamedTuple):
    """An undecoded record of a shard: member extension -> (offset, size) in a local tar, or its bytes."""

    shard: str
    key: str
    members: Members
    fault: str = ""


def expand(pattern: str) -> list[str]:
    """Shards named by a folder, a file, a glob pattern, a brace pattern or a URL, in order.

    Hidden files, such as ``._00000.tar`` of a Mac, are left out.

    Raises DataError: a local shard is missing, or a brace pattern names more than :data:`MAX_SHARDS`.
    """
    if not is_remote(pattern):
        pattern = str(Path(pattern).expanduser())
    if os.path.isdir(pattern):
        found = sorted(str(p) for p in Path(pattern).glob("*.tar"))
        result = [name for name in found if not is_hidden(Path(name).name)]
        if hidden := len(found) - len(result):
            log.warning("%s: %d hidden files left out", pattern, hidden)
        return result
    if os.path.isfile(pattern):
        return [pattern]
    from webdataset.shardlists import expand_urls

    if (named := brace_count(pattern)) > MAX_SHARDS:
        raise DataError(
            f"web_shards: {pattern} names {named:,} shards, allowed are {MAX_SHARDS:,}",
            fix="narrow the pattern under build_info.storage",
        )
    names = [n for p in expand_urls(pattern) for n in (_globbed(p) if re.search(r"[*?\[]", p) else [p])]
    if any(n.startswith("pipe:") for n in names) and not pattern.startswith("pipe:"):
        raise DataError(f"web_shards: {pattern!r:.80} hides a command", fix="begin a storage that runs one with pipe:")
    missing = [n for n in names if not is_remote(n) and not os.path.isfile(n)]
    if missing:
        raise DataError(
            f"web_shards: {len(missing)} of {len(names)} shards are missing, the first is {missing[0]}",
            fix="download them or narrow the pattern under build_info.storage",
        )
    return names


def brace_count(pattern: str) -> int:
    """An upper bound of the names that a brace pattern expands to, without expanding it."""
    result = 1
    for low, high, step in re.findall(r"\{(-?\d+)\.\.(-?\d+)(?:\.\.(-?\d+))?\}", pattern):
        result *= abs(int(high) - int(low)) // max(abs(int(step or 1)), 1) + 1
    for choices in re.findall(r"\{([^{}]*,[^{}]*)\}", pattern):
        result *= choices.count(",") + 1
    return result


def _globbed(pattern: str) -> list[str]:
    """The matches of a local pattern; whatever a file is called, it is a file."""
    if is_remote(pattern):
        return [pattern]
    return [str(Path(p).absolute()) if is_remote(p) else p for p in sorted(glob.glob(pattern))]


def is_remote(name: str) -> bool:
    """Whether a shard is an address or a command, not a local file."""
    return "://" in name or name.startswith("pipe:")


def read_shard(shard: str) -> Iterator[ShardRecord]:
    """The records of one shard, in order; an unusable one has ``fault`` set.

    Faults: a damaged or truncated tar or a broken connection (after the complete records before it), a name that leads
    out of its folder, a key that occurs again later, two members of a record with the same extension, a member of more
    than :data:`MAX_MEMBER` bytes (after which a compressed tar is not read on). Hidden members are left out.
    """
    key, seen, streamed = "", set[str](), is_remote(shard) or not shard.endswith(".tar")
    hidden: list[str] = []
    try:
        with (
            closing(open_remote(shard)) if streamed else open_regular(shard) as stream,
            tarfile.open(fileobj=stream, mode="r|*" if streamed else "r:", tarinfo=_Header) as tar,
        ):
            for key, infos in groupby(_files(tar, hidden), key=lambda info: split_name(info.name)[0]):
                fault, members = "", Members()
                if key in seen:
                    fault = "the key occurred before in this shard (the members of a record must be neighbours)"
                seen.add(key)
                for info in infos:
                    name, ext = info.name, split_name(info.name)[1]
                    if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
                        fault = f"refused: member name {name!r} leads out of its folder"
                    elif ext in members:
                        fault = f"two members with the extension {ext!r}, the second is {name!r}"
                    elif info.size > MAX_MEMBER or info.issparse():
                        fault = f"{name!r} has {info.size:,} bytes, allowed are {MAX_MEMBER:,}"
                        if info.issparse():
                            fault = f"{name!r} is stored as a sparse file"
                        if streamed:
                            raise EOFError(f"{fault}; the rest of the shard is not read")
                        continue
                    members[ext] = _bytes(tar, info) if streamed else (info.offset_data, info.size)
                yield ShardRecord(shard, key, Members() if fault else members, fault)
            if not hasattr(tar, "has_end"):
                raise EOFError("no end marker: truncated, records may be missing")
            if hidden:
                _say_once(f"{shard}: {len(hidden)} hidden files left out, the first is {hidden[0]}")
    except _BROKEN as error:
        kind = "unreadable" if is_remote(shard) else "damaged tar"
        yield ShardRecord(shard, f"after {key or 'start'}", Members(), f"{kind} ({error})")


class _Header(tarfile.TarInfo):
    """Notes on the archive that its end marker was read: tarfile stops silently at a truncated header.

    Refuses headers that tarfile would read whole, whatever size they declare.
    """

    @classmethod
    def fromtarfile(cls, tarfile_: Any) -> Any:
        try:
            return super().fromtarfile(tarfile_)
        except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
            tarfile_.has_end = True
            raise

    @classmethod
    def frombuf(cls, *args: Any) -> Any:
        found = super().frombuf(*args)
        long = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE)
        if found.type in (*long, tarfile.SOLARIS_XHDTYPE) and found.size > MAX_NAME:
            raise tarfile.ReadError(f"a name or attributes of {found.size:,} bytes, allowed are {MAX_NAME:,}")
        return found


def _files(tar: tarfile.TarFile, hidden: list[str]) -> Iterator[tarfile.TarInfo]:
    """The members that are visible files; the names of the others go into ``hidden``."""
    while (info := tar.next()) is not None:
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
        if info.isfile() and is_hidden(info.name):
            hidden.append(info.name)
        elif info.isfile():
            yield info


def split_name(name: str) -> tuple[str, str]:
    """``a/0001.seg.jpg`` -> (``a/0001``, ``seg.jpg``): a key ends at the first dot of the file name."""
    folder, _, base = name.rpartition("/")
    stem, _, ext = base.partition(".")
    return (f"{folder}/{stem}" if folder else stem), ext.lower()


def _bytes(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    member = tar.extractfile(info)
    data = member.read() if member is not None else b""
    if len(data) < info.size:
        raise EOFError(f"{info.name} ends after {len(data)} of {info.size} bytes")
    return data


def read_member(raw: ShardRecord, ext: str) -> bytes:
    """The bytes of a member. Raises DataError if the shard is gone or has become shorter."""
    where = raw.members[ext]
    if isinstance(where, bytes):
        return where
    offset, size = where
    try:
        with open_regular(raw.shard) as file:
            file.seek(offset)
            data = file.read(size)
    except OSError as error:
        raise DataError(f"{raw.shard}: record {raw.key}: cannot be read ({error.strerror})") from error
    if len(data) < size:
        raise DataError(f"{raw.shard}: record {raw.key}: truncated ({len(data)} of {size} bytes)")
    return data


def open_remote(shard: str) -> IO[bytes]:
    """A byte stream of an http(s) or ``file://`` address, a ``pipe:`` command, an fsspec address, or a local file.

    Raises DataError: the package for the address is not installed; OSError: it cannot be opened after three attempts.
    """
    if is_url(shard):
        return _tried(shard)
    if shard.startswith("pipe:"):
        from webdataset.gopen import gopen

        stream: IO[bytes] = gopen(shard, "rb")
        return stream
    if shard.startswith("file:"):
        return open_regular(urllib.request.url2pathname(urllib.parse.urlsplit(shard).path))
    return _object_storage(shard) if is_remote(shard) else open_regular(shard)


def _tried(shard: str) -> IO[bytes]:
    """An http(s) stream; a 4xx status is final, anything else is tried again."""
    for attempt in count(1):
        try:
            return urllib.request.urlopen(shard, timeout=60)  # type: ignore[no-any-return]
        except OSError as error:
            if attempt == OPEN_ATTEMPTS or (isinstance(error, urllib.error.HTTPError) and error.code < 500):
                raise
        time.sleep(0.25 * 2**attempt)
    raise AssertionError  # not reached


def _object_storage(shard: str) -> IO[bytes]:
    protocol = shard.partition("://")[0]
    if protocol not in STORAGES:  # others read configurations of their own, run programs or log in elsewhere
        known = ", ".join(f"{name}://" for name in STORAGES)
        raise DataError(
            f"web_shards: {shard}: unknown kind of address", fix=f"use a path, http(s)://, {known} or pipe:"
        )
    package = {"s3": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "hdfs": "pyarrow"}.get(protocol, "fsspec")
    try:
        import fsspec

        stream: Any = fsspec.open(shard, "rb").open()
    except ImportError:
        raise DataError(f"web_shards: {shard} needs the package {package}", fix=f"pip install {package}") from None
    except ValueError as error:
        raise DataError(f"web_shards: {shard}: {error}", fix="use a path, http(s)://, s3://, gs:// or pipe:") from None
    return stream  # type: ignore[no-any-return]


@cache
def _say_once(text: str) -> None:
    log.warning("%s", text)
