"""API keys that a key store issues. Only their digests are kept."""

import hashlib
import secrets
from dataclasses import dataclass
from enum import StrEnum

from jaxserve.access.principal import KEY_ID_CHARS, Principal

# A key is this, followed by 256 random bits in base64url.
KEY_PREFIX = "jsk-"
KEY_BYTES = 32
# Characters of a key that are shown to tell keys apart, KEY_PREFIX included.
SHOWN_CHARS = 8


class Scope(StrEnum):
    """Use that a key may be made of."""

    INFERENCE = "inference"
    FILES = "files"
    METRICS = "metrics"
    ADMIN = "admin"


# Scopes of a key that an application needs.
DEFAULT_SCOPES = (Scope.INFERENCE, Scope.FILES)


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """An issued key, without its secret.

    id: first digits of the key's digest, which also name it in logs. shown: its first characters.
    note: free text. Times are Unix times in seconds; None means never.
    """

    id: str
    shown: str
    tenant: str
    scopes: tuple[Scope, ...]
    note: str
    created_at: int
    expires_at: int | None = None
    revoked_at: int | None = None

    def is_valid(self, now_s: float) -> bool:
        """Return whether the key is neither revoked nor expired."""
        return self.revoked_at is None and (self.expires_at is None or now_s < self.expires_at)

    @property
    def principal(self) -> Principal:
        """The principal that the key authenticates."""
        return Principal(self.tenant, self.id, frozenset(self.scopes))


def new_secret() -> str:
    """Return the text of a new key."""
    return KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)


def digest_of(secret: str) -> bytes:
    """Return the digest by which a key is known. Of a header's text, which is latin-1."""
    return hashlib.sha256(secret.encode("latin-1")).digest()


def id_of(digest: bytes) -> str:
    """Return the id of the key with this digest."""
    return digest.hex()[:KEY_ID_CHARS]
