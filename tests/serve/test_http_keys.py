"""API keys: their files, their tenants, and that they are told to nobody."""

from __future__ import annotations

import hashlib
import json
import logging
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")

from vlm.common.errors import UserError
from vlm.serve.http.keys import Keys

ALICE, BOB = "alice-4f9a0c1d2e3b4a5f", "bob/Zm9vYmFyYmF6+cXV4=="
HASH = hashlib.sha256(BOB.encode()).hexdigest()


@pytest.mark.parametrize(
    "text",
    [
        f"{ALICE}: alice\n{BOB}: bob\n",
        f"# who may ask\n\n{ALICE} alice  # a comment\nsha256:{HASH} bob\n",
        f"---\n'{ALICE}': alice\n\"{BOB}\": 'bob'\n",
        f'"sha256:{HASH}": bob\n{ALICE}:   alice',
        json.dumps({ALICE: "alice", f"sha256:{HASH.upper()}": "bob"}, indent=1),
    ],
)
def test_forms_of_a_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    file.chmod(0o600)
    keys = Keys.load(file)
    assert len(keys) == keys.tenants == 2
    assert (keys.tenant(ALICE), keys.tenant(BOB)) == ("alice", "bob")
    assert keys.tenant(HASH) is keys.tenant(f"sha256:{HASH}") is keys.tenant("alice") is keys.tenant("") is None


def test_the_environment_and_tenants_without_a_name() -> None:
    keys = Keys.load(environment={"VLM_API_KEYS": f"{ALICE}:team, {BOB} sha256:{'0' * 64}:team"})
    assert keys.tenant(ALICE) == "team"
    own = keys.tenant(BOB)
    assert own is not None and own == f"key-{HASH[:12]}"  # each has a cache of its own
    assert keys.tenants == 2
    assert not Keys.load(environment={}) and Keys().tenant(ALICE) is None


@pytest.mark.parametrize(
    ("header", "tenant"),
    [
        (f"Bearer {ALICE}", "alice"),
        (f"bearer   {ALICE} ", "alice"),
        (f"Basic {ALICE}", None),
        (ALICE, None),
        (f"Bearer{ALICE}", None),
        ("Bearer", None),
        (f"Bearer {ALICE[:-1]}", None),
        (f"Bearer {ALICE}x", None),
        (f"Bearer {ALICE}\xff", None),
        ("Bearer " + "a" * 30_000, None),
    ],
)
def test_the_header(header: str, tenant: str | None) -> None:
    assert Keys({ALICE: "alice"}).of_header(header.encode("latin-1")) == tenant


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("short: alice", r"line 1: found 5 characters"),
        (f"\n{ALICE}é alice", r"line 2: found"),
        ("sha256:abcdef: alice", r"line 1: after sha256: come 6 characters"),
        (f"{ALICE}: two words", r"a tenant's name"),
        (f"{ALICE}: a\n{ALICE}: b", r"line 2: the key has another tenant"),
        (f'{{"{ALICE}": 3}}', r"the tenant is a int"),
        (f'{{"{ALICE}": ', r"begins like JSON"),
        ("# none\n", r"holds no API key"),
        ("", r"holds no API key"),
    ],
)
def test_a_fault_names_the_place_and_not_the_key(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(UserError, match=said) as caught:
        Keys.load(tmp_path / "keys")
    assert ALICE not in str(caught.value) and "short" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_missing_files_and_files_that_others_can_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        Keys.load(tmp_path / "absent")
    file = tmp_path / "keys"
    file.write_text(f"{ALICE}: alice")
    file.chmod(0o644)
    with caplog.at_level(logging.WARNING, logger="vlm"):
        keys = Keys.load(file)
        assert "chmod 600" in caplog.text
        caplog.clear()
        file.chmod(0o600)
        Keys.load(file)
    assert not caplog.text
    assert ALICE not in repr(keys) + str(vars(keys))
