"""Reload TLS certificates that are renewed while the server runs."""

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
    """Reload the certificate files into `context` whenever they change, until cancelled.

    Open connections keep their certificate. If loading fails, for example because only one file of
    a pair has been replaced, log a warning and retry.
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
            log.warning("cannot reload TLS files", reason=str(error))
            continue
        loaded = found
        log.info("reloaded TLS files")


def _version(path: Path) -> tuple[int, int, int] | None:
    """Return a value that changes when a file is written or replaced; None if it is absent."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
