"""Issued API keys: their store, and `jaxserve keys`."""

import sqlite3
import stat
from pathlib import Path

import pytest

from jaxserve.access.api_key import Scope
from jaxserve.access.key_store import MAX_LIFETIME_S, KeyStore
from jaxserve.cli import main
from jaxserve.errors import InvalidRequestError, StorageError


class Clock:
    """A clock that a test sets."""

    now_s = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> KeyStore:
    return KeyStore(tmp_path / "folder" / "keys.sqlite", clock=clock)


def test_a_key_authenticates_its_tenant_within_its_scopes(store: KeyStore) -> None:
    secret, key = store.create("acme", scopes=["inference", "metrics"], note="the app")
    principal = store.principal(secret)
    assert principal is not None
    assert (principal.tenant, principal.name) == ("acme", key.id)
    assert principal.has_scope(Scope.METRICS)
    assert not principal.has_scope(Scope.ADMIN)
    assert store.keys() == [key]
    assert secret.startswith(key.shown)


def test_keys_are_long_and_distinct(store: KeyStore) -> None:
    secrets = {store.create("acme")[0] for _ in range(20)}
    assert len(secrets) == 20
    assert {len(secret) for secret in secrets} == {47}


def test_an_unknown_key_is_nobody(store: KeyStore) -> None:
    secret, _ = store.create("acme")
    for wrong in ("", secret[:-1], f"{secret}x", secret.upper(), "\xff\xfe"):
        assert store.principal(wrong) is None


def test_the_database_does_not_contain_the_key(store: KeyStore, tmp_path: Path) -> None:
    secret, key = store.create("acme")
    folder = tmp_path / "folder"
    contents = b"".join(path.read_bytes() for path in folder.iterdir())
    assert key.id.encode() in contents
    assert secret[8:].encode() not in contents
    assert stat.S_IMODE((folder / "keys.sqlite").stat().st_mode) == 0o600


def test_a_change_by_another_process_takes_effect_at_once(store: KeyStore, tmp_path: Path) -> None:
    other = KeyStore(tmp_path / "folder" / "keys.sqlite")
    secret, key = store.create("acme")
    assert other.principal(secret) is not None
    store.revoke(key.id)
    assert other.principal(secret) is None
    second, _ = other.create("acme")
    assert store.principal(second) is not None


def test_a_key_expires(store: KeyStore, clock: Clock) -> None:
    secret, _ = store.create("acme", lifetime_s=60)
    clock.now_s += 59
    assert store.principal(secret) is not None
    clock.now_s += 1
    assert store.principal(secret) is None


def test_a_rotated_key_stays_valid_for_the_overlap(store: KeyStore, clock: Clock) -> None:
    old, key = store.create("acme", scopes=["files"], lifetime_s=1000, note="backup")
    clock.now_s += 100
    new, successor = store.rotate(key.id, overlap_s=50)
    assert (successor.tenant, successor.scopes, successor.note) == ("acme", ("files",), "backup")
    assert successor.expires_at == 1_000_000 + 100 + 1000
    assert None not in (store.principal(old), store.principal(new))
    clock.now_s += 50
    assert store.principal(old) is None
    assert store.principal(new) is not None


def test_a_rotation_never_extends_the_old_key(store: KeyStore, clock: Clock) -> None:
    old, key = store.create("acme", lifetime_s=60)
    store.rotate(key.id, overlap_s=3600)
    clock.now_s += 60
    assert store.principal(old) is None


def test_a_key_that_has_ended_is_not_rotated(store: KeyStore) -> None:
    _, key = store.create("acme")
    revoked = store.revoke(key.id)
    assert store.revoke(key.id) == revoked
    with pytest.raises(InvalidRequestError, match="revoked or expired"):
        store.rotate(key.id, overlap_s=0)
    for change in (store.revoke, lambda name: store.rotate(name, overlap_s=0)):
        with pytest.raises(InvalidRequestError, match="there is no key 'nobody'"):
            change("nobody")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"tenant": ""}, "tenant must be up to 64 letters"),
        ({"tenant": "a/b"}, "got 'a/b'"),
        ({"scopes": []}, "scopes must be one or more of inference, files, metrics, admin"),
        ({"scopes": ["root"]}, r"got \['root'\]"),
        ({"lifetime_s": 0}, rf"lifetime_s must be in \[1, {MAX_LIFETIME_S}\], got 0"),
        ({"lifetime_s": 2**70}, "lifetime_s must be"),
        ({"note": "x" * 201}, "note must be at most 200 printable characters, got 201"),
        ({"note": "a\x1b[2J"}, "printable"),
    ],
)
def test_a_wrong_description_is_refused(
    store: KeyStore, fields: dict[str, object], words: str
) -> None:
    with pytest.raises(InvalidRequestError, match=words):
        store.create(**{"tenant": "acme", **fields})  # type: ignore[arg-type]
    assert store.keys() == []


def test_a_database_that_is_gone_or_replaced_is_noticed(store: KeyStore, tmp_path: Path) -> None:
    path = tmp_path / "folder" / "keys.sqlite"
    secret, _ = store.create("acme")
    assert store.principal(secret) is not None
    for file in path.parent.iterdir():
        file.unlink()
    with pytest.raises(StorageError):
        store.principal(secret)
    other, _ = KeyStore(path).create("acme")
    assert store.principal(secret) is None
    assert store.principal(other) is not None


def test_a_file_that_is_no_database_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "keys.sqlite"
    path.write_text("not a database " * 100)
    with pytest.raises(StorageError):
        KeyStore(path)


def test_the_command_line_issues_lists_rotates_and_revokes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "keys.sqlite"
    monkeypatch.setenv("JAXSERVE_KEY_STORE", str(path))
    create = ["keys", "create", "--tenant", "acme", "--expires-in", "90d", "--note", "app"]
    assert main(create) == 0
    secret = capsys.readouterr().out.strip()
    store = KeyStore(path)
    (key,) = store.keys()
    assert key.expires_at == key.created_at + 90 * 24 * 3600
    assert store.principal(secret) is not None
    assert main(["keys", "rotate", key.id, "--overlap", "1h"]) == 0
    second = capsys.readouterr().out.strip()
    assert main(["keys", "revoke", key.id]) == 0
    assert main(["keys", "list", "--tenant", "acme"]) == 0
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split() == [
        "ID",
        "KEY",
        "TENANT",
        "SCOPES",
        "CREATED",
        "EXPIRES",
        "STATE",
        "NOTE",
    ]
    assert sorted(row.split()[6] for row in rows) == ["revoked", "valid"]
    assert store.principal(secret) is None
    assert store.principal(second) is not None
    assert main(["keys", "list", "--tenant", "other"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_the_command_line_names_what_is_missing_or_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JAXSERVE_KEY_STORE", raising=False)
    assert main(["keys", "list"]) == 1
    assert "key_store is missing" in capsys.readouterr().err
    at = ["--key-store", str(tmp_path / "keys.sqlite")]
    assert main(["keys", "revoke", "nobody", *at]) == 1
    assert "there is no key 'nobody'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["keys", "create", "--tenant", "a", "--expires-in", "soon", *at])
    assert "must be a number with s, m, h or d, got 'soon'" in capsys.readouterr().err


def test_ids_name_keys_and_reveal_none(store: KeyStore, tmp_path: Path) -> None:
    secret, key = store.create("acme")
    assert key.id not in secret
    with sqlite3.connect(tmp_path / "folder" / "keys.sqlite") as connection:
        ((digest,),) = connection.execute("SELECT digest FROM api_keys").fetchall()
    connection.close()
    assert digest.hex().startswith(key.id)
