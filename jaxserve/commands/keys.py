"""`jaxserve keys`: issue, list, revoke and rotate the API keys of a server."""

import argparse
import os
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

from jaxserve.access.api_key import DEFAULT_SCOPES, ApiKey, Scope
from jaxserve.errors import ConfigError

if TYPE_CHECKING:
    from jaxserve.access.key_store import KeyStore

HELP = "issue, list, revoke and rotate API keys"
STORE_VARIABLE = "JAXSERVE_KEY_STORE"
HEADER = ("ID", "KEY", "TENANT", "SCOPES", "CREATED", "EXPIRES", "STATE", "NOTE")
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add one subcommand for each action."""
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)

    def add(name: str, text: str) -> argparse.ArgumentParser:
        action = actions.add_parser(name, help=text, description=text)
        action.add_argument(
            "--key-store",
            metavar="PATH",
            help=f"the database, as of `jaxserve serve` (default: {STORE_VARIABLE})",
        )
        action.set_defaults(action=ACTIONS[name])
        return action

    create = add("create", "issue a key and print it; it is not stored and cannot be shown again")
    create.add_argument("--tenant", required=True, help="owner of what its requests store and use")
    create.add_argument(
        "--scopes",
        nargs="+",
        choices=[*Scope],
        default=DEFAULT_SCOPES,
        help=f"what it may be used for (default: {' '.join(DEFAULT_SCOPES)})",
    )
    create.add_argument(
        "--expires-in", type=seconds, metavar="TIME", help="such as 90d or 12h (default: never)"
    )
    create.add_argument("--note", default="", help="free text, shown by `list`")
    add("list", "print the keys without their secrets").add_argument(
        "--tenant", help="only those of a tenant"
    )
    add("revoke", "revoke a key; requests that use it are refused at once").add_argument("id")
    rotate = add("rotate", "issue a key in place of another one, and print it")
    rotate.add_argument("id")
    rotate.add_argument(
        "--overlap",
        type=seconds,
        default=UNITS["d"],
        metavar="TIME",
        help="how long the old key stays valid, such as 12h (default: 1d)",
    )


def run(args: argparse.Namespace) -> int:
    """Run an action."""
    from jaxserve.access.key_store import KeyStore

    path = args.key_store or os.environ.get(STORE_VARIABLE)
    if not path:
        raise ConfigError(f"key_store is missing: give --key-store PATH or set {STORE_VARIABLE}")
    args.action(KeyStore(Path(path)), args)
    return 0


def seconds(text: str) -> int:
    """Return a time such as `90d` in seconds."""
    found = re.fullmatch(r"([0-9]{1,9})([smhd])", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"must be a number with s, m, h or d, got {text!r}")
    return int(found[1]) * UNITS[found[2]]


def _create(store: "KeyStore", args: argparse.Namespace) -> None:
    secret, _ = store.create(
        args.tenant, scopes=args.scopes, lifetime_s=args.expires_in, note=args.note
    )
    print(secret)


def _list(store: "KeyStore", args: argparse.Namespace) -> None:
    now_s = time.time()
    rows = [HEADER, *(_row(key, now_s) for key in store.keys(args.tenant))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _row(key: ApiKey, now_s: float) -> tuple[str, ...]:
    state = "valid" if key.is_valid(now_s) else "expired" if key.revoked_at is None else "revoked"
    return (
        key.id,
        f"{key.shown}...",
        key.tenant,
        ",".join(key.scopes),
        _date(key.created_at),
        _date(key.expires_at),
        state,
        key.note,
    )


def _date(time_s: int | None) -> str:
    return "-" if time_s is None else time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time_s))


def _revoke(store: "KeyStore", args: argparse.Namespace) -> None:
    store.revoke(args.id)


def _rotate(store: "KeyStore", args: argparse.Namespace) -> None:
    secret, _ = store.rotate(args.id, overlap_s=args.overlap)
    print(secret)


ACTIONS = {"create": _create, "list": _list, "revoke": _revoke, "rotate": _rotate}
