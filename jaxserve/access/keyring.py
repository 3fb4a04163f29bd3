"""API keys and the principals that they authenticate."""

import hashlib
import hmac
from collections.abc import Mapping, Sequence

from jaxserve.access.principal import Principal

# Hexadecimal digits of a key's digest: they tell keys apart and reveal nothing.
KEY_ID_CHARS = 12


class Keyring:
    """The API keys of a server.

    names: the tenant of each key, in order; keys with one name belong to one tenant. Without names
    each key is a tenant of its own, named by the first digits of the key's digest.
    """

    def __init__(self, keys: Sequence[str], *, names: Sequence[str] = ()) -> None:
        self._principals: dict[bytes, Principal] = {}
        for position, key in enumerate(keys):
            digest = hashlib.sha256(key.encode()).digest()
            key_id = digest.hex()[:KEY_ID_CHARS]
            tenant = names[position] if names else key_id
            self._principals[digest] = Principal(tenant, key_id)

    def principal(self, key: str) -> Principal | None:
        """Return the principal of a key as a header carries it, None for an unknown key.

        The time this takes does not depend on how much of a key is right.
        """
        digest = hashlib.sha256(key.encode("latin-1")).digest()
        found = None
        for known, principal in self._principals.items():
            if hmac.compare_digest(digest, known):
                found = principal
        return found

    @property
    def renamed_tenants(self) -> Mapping[str, str]:
        """The tenants that keys had before they were named, and the names they have now."""
        principals = self._principals.values()
        return {each.name: each.tenant for each in principals if each.tenant != each.name}
