"""TLS certificates that are replaced while the server runs, as issuers of short-lived ones do."""

import asyncio
import ssl
from pathlib import Path

from jaxserve.config.server import ServerConfig
from jaxserve.observability.logging import get_logger

log = get_logger(__name__)

POLL_S = 5.0


async def refresh_certificates(
    context: ssl.SSLContext, config: ServerConfig, *, poll_s: float = POLL_S
) -> None:
    """Load the certificate files into `context` again whenever they have changed, for ever.

    Connections that are open keep the certificate they began with. Files that cannot be loaded,
    as when only one of a pair is there yet, are logged and tried again.
    """
    assert config.ssl_certfile is not None
    certfile, keyfile = Path(config.ssl_certfile), config.ssl_keyfile
    authorities = config.ssl_ca_certs
    files = [Path(name) for name in (certfile, keyfile, authorities) if name is not None]
    loaded = [_version(path) for path in files]
    while True:
        await asyncio.sleep(poll_s)
        found = [_version(path) for path in files]
        if found == loaded:
            continue
        try:
            context.load_cert_chain(certfile, keyfile)
            if authorities is not None:
                context.load_verify_locations(authorities)
        except (OSError, ssl.SSLError) as error:
            log.warning("TLS files have changed and cannot be loaded", reason=str(error))
            continue
        loaded = found
        log.info("TLS files have changed and are loaded again")


def _version(path: Path) -> tuple[int, int, int] | None:
    """Return what changes when a file is written or replaced; None if it is not there."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
