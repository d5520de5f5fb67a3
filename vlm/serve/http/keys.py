"""API keys of an HTTP server, and the tenants to whom they belong."""

from __future__ import annotations

import hashlib
import hmac
import json
import logging
import os
import re
import stat
from collections.abc import Iterable, Mapping
from pathlib import Path

from vlm.common.errors import UserError
from vlm.common.files import read_regular

VARIABLE = "VLM_API_KEYS"
SHORTEST = 16
"""Characters of a key at least; a shorter one can be guessed."""
LONGEST = 512
MOST = 10_000
MIB = 1 << 20

_HASH = re.compile(r"sha256:([0-9a-fA-F]{64})")
_KEY = re.compile(r"[\x21-\x7e]+")
_TENANT = re.compile(r"[\w.@-]{1,64}", re.ASCII)
_FORMS = "write lines of KEY: TENANT, or sha256:HEX: TENANT with the SHA-256 of the key, or the same as a JSON object"

logger = logging.getLogger(__name__)


class Keys:
    """Digests of API keys; the keys themselves are not kept.

    Example:
        >>> keys = Keys({"a-key-of-many-letters": "alice"})
        >>> keys.tenant("a-key-of-many-letters"), keys.tenant("another")
        ('alice', None)
    """

    def __init__(self, tenants: Mapping[str, str | None] | None = None) -> None:
        """Take keys and their tenants.

        Args:
            tenants: key, or ``sha256:`` and the SHA-256 of a key in hexadecimal digits -> tenant. A key whose tenant is
                None or empty has one of its own. None, or an empty mapping: no key is needed.

        Raises:
            UserError: a key that is too short, or a name that a tenant cannot have.
        """
        self._tenants: dict[bytes, str] = {}
        for index, (key, tenant) in enumerate((tenants or {}).items(), start=1):
            self._add(key, tenant, f"key {index}")

    def __repr__(self) -> str:
        return f"<Keys: {len(self._tenants)} of {self.tenants} tenants>"

    def __bool__(self) -> bool:
        return bool(self._tenants)

    def __len__(self) -> int:
        return len(self._tenants)

    @property
    def tenants(self) -> int:
        """How many tenants there are."""
        return len(set(self._tenants.values()))

    @classmethod
    def load(cls, file: str | Path | None = None, environment: Mapping[str, str] = os.environ) -> Keys:
        """The keys of a file, or else of the environment variable ``VLM_API_KEYS``.

        Args:
            file: lines of ``KEY``, ``KEY TENANT`` or ``KEY: TENANT``, where ``#`` begins a comment, or a JSON object.
            environment: its variable holds ``KEY`` or ``KEY:TENANT``, divided by commas or blanks.

        Raises:
            UserError: unreadable, or not of this form; the message names the line and never the key.
        """
        if file is None:
            if VARIABLE not in environment:
                return cls()
            items = [item for item in re.split(r"[,\s]+", environment[VARIABLE]) if item]
            pairs = [(f"{VARIABLE}, key {index}", *_split(item, ":")) for index, item in enumerate(items, start=1)]
            return cls._of(pairs, VARIABLE)
        path = Path(file).expanduser()
        try:
            text = read_regular(path, most=MIB).decode("utf-8-sig")
            if os.name == "posix" and stat.S_IMODE(path.stat().st_mode) & 0o077:
                logger.warning("%s can be read by other users of this machine; chmod 600 it", path)
        except UnicodeDecodeError:
            raise UserError(f"{path}: not text in UTF-8", fix=_FORMS) from None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UserError(f"{path}: the API keys cannot be read ({reason})") from None
        return cls._of(list(_pairs(text, str(path))), str(path))

    @classmethod
    def _of(cls, pairs: list[tuple[str, str, str | None]], source: str) -> Keys:
        """Keys of (where, key, tenant)."""
        keys = cls()
        for where, key, tenant in pairs:
            keys._add(key, tenant, where)
        if not keys:  # an empty list would open the server to everybody
            raise UserError(f"{source} holds no API key", fix=f"{_FORMS}; or don't name it, to need no key")
        return keys

    def _add(self, key: str, tenant: str | None, where: str) -> None:
        found = _HASH.fullmatch(key)
        if found:
            digest = bytes.fromhex(found[1])
        elif key.startswith("sha256:"):
            raise UserError(f"{where}: after sha256: come {len(key) - 7} characters, expected 64 hexadecimal digits")
        elif not SHORTEST <= len(key) <= LONGEST or not _KEY.fullmatch(key):
            raise UserError(
                f"{where}: found {len(key)} characters, expected {SHORTEST} to {LONGEST} of ASCII without blanks",
                fix="make one with: python -c 'import secrets; print(secrets.token_urlsafe(32))'",
            )
        else:
            digest = _digest(key.encode())
        tenant = tenant or f"key-{digest.hex()[:12]}"
        if not _TENANT.fullmatch(tenant):
            raise UserError(f"{where}: a tenant's name has 1 to 64 letters, digits and . _ @ -")
        if self._tenants.setdefault(digest, tenant) != tenant:
            raise UserError(f"{where}: the key has another tenant already", fix="remove one of the two")
        if len(self._tenants) > MOST:
            raise UserError(f"more than {MOST} API keys", fix="check keys in a balancer in front of the server")

    def tenant(self, key: str) -> str | None:
        """Whose key it is; None: nobody's. It takes equally long for every key."""
        given = _digest(key.encode("utf-8", "surrogatepass"))
        result = None
        for digest, tenant in self._tenants.items():
            if hmac.compare_digest(digest, given):
                result = tenant
        return result

    def of_header(self, authorization: bytes | None) -> str | None:
        """The same for the value of an ``Authorization`` header, ``Bearer KEY``."""
        scheme, _, key = (authorization or b"").strip().partition(b" ")
        key = key.strip()
        if scheme.lower() != b"bearer" or not key or len(key) > LONGEST:
            return None
        return self.tenant(key.decode("latin-1"))


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def _pairs(text: str, source: str) -> Iterable[tuple[str, str, str | None]]:
    """(where, key, tenant) of a file."""
    if text.lstrip().startswith("{"):
        try:
            entries = json.loads(text, object_pairs_hook=list)
        except (ValueError, RecursionError):
            raise UserError(f"{source}: begins like JSON and is not", fix=_FORMS) from None
        for index, (key, tenant) in enumerate(entries, start=1):
            where = f"{source}, key {index}"
            if tenant is not None and not isinstance(tenant, str):
                raise UserError(f"{where}: the tenant is a {type(tenant).__name__}, expected a string", fix=_FORMS)
            yield where, key, tenant
        return
    for number, line in enumerate(text.splitlines(), start=1):
        line = re.split(r"(?:^|\s)#", line)[0].strip()
        if line and line not in ("---", "..."):
            yield f"{source}, line {number}", *_split(line, r":\s|\s")


def _split(item: str, divider: str) -> tuple[str, str | None]:
    """Key and tenant, with the quotes of YAML removed; the colon of ``sha256:`` belongs to the key."""
    head = "sha256:" if item.lstrip("'\"").startswith("sha256:") else ""
    parts = re.split(divider, item.lstrip("'\"").removeprefix(head), maxsplit=1)
    key, tenant = parts[0].rstrip(":").strip("'\""), (parts[1:] or [""])[0].strip().strip("'\"")
    return head + key, tenant or None
