"""A strict variant of h11's server-side parser, against request smuggling.

A proxy in front of the server may parse an ambiguous request differently from h11, so that the body
of one request becomes a second request. Ambiguous requests are refused.
"""

import re

import h11

# Minimum average size of chunks once there are more than MAX_SMALL_CHUNKS. Each chunk takes some
# microseconds to parse; 256 KiB of one-byte chunks would block the event loop for half a second.
MIN_CHUNK_BYTES = 32
MAX_SMALL_CHUNKS = 4096
MAX_REASON_CHARS = 120

END_OF_HEADERS = re.compile(rb"\n\r?\n")
FOLDED_LINE = re.compile(rb"\n[ \t]")
# RFC 3986: an IP literal in brackets or a registered name, and a port.
HOST = re.compile(rb"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+,;=-]*)(:[0-9]*)?")


class StrictConnection(h11.Connection):
    """The server's side of a connection.

    num_body_bytes: size of the current body so far. complaint: error message for the client if the
    last request was refused.
    """

    def __init__(self, max_header_bytes: int) -> None:
        super().__init__(h11.SERVER, max_header_bytes)
        self.num_body_bytes = 0
        self.complaint = ""
        self._num_chunks = 0

    def next_event(self) -> h11.Event | type[h11.NEED_DATA] | type[h11.PAUSED]:
        """See h11.Connection. Also raises RemoteProtocolError for ambiguous requests."""
        try:
            if self.their_state is h11.IDLE:
                self._check_folding()
            event = super().next_event()
            if isinstance(event, h11.Request):
                self.num_body_bytes = self._num_chunks = 0
                _check_request(event)
            elif isinstance(event, h11.Data):
                self._check_chunks(event)
        except h11.RemoteProtocolError as error:
            self.complaint = f"the request is not valid HTTP/1.1: {error}"[:MAX_REASON_CHARS]
            raise
        return event

    def _check_folding(self) -> None:
        # Check before h11 joins folded lines.
        data, _ = self.trailing_data
        end = END_OF_HEADERS.search(data)
        if end is not None and FOLDED_LINE.search(data, 0, end.end()):
            raise h11.RemoteProtocolError("a header must not continue on another line")

    def _check_chunks(self, data: h11.Data) -> None:
        self.num_body_bytes += len(data.data)
        self._num_chunks += data.chunk_start
        limit = MAX_SMALL_CHUNKS + self.num_body_bytes // MIN_CHUNK_BYTES
        if self._num_chunks > limit:
            raise h11.RemoteProtocolError(
                f"chunks must have {MIN_CHUNK_BYTES} bytes on average when there are more than"
                f" {MAX_SMALL_CHUNKS}"
            )


def _check_request(request: h11.Request) -> None:
    headers = dict(request.headers)  # h11 has refused duplicates of the headers checked here
    if request.http_version not in {b"1.0", b"1.1"}:
        raise h11.RemoteProtocolError("the version must be 1.0 or 1.1")
    if b"transfer-encoding" in headers:
        # RFC 9112, 6.1 and 6.3.
        if b"content-length" in headers:
            raise h11.RemoteProtocolError(
                "Content-Length and Transfer-Encoding must not be sent together"
            )
        if request.http_version == b"1.0":
            raise h11.RemoteProtocolError("Transfer-Encoding must not be sent in HTTP/1.0")
    is_server_wide = request.target == b"*" and request.method == b"OPTIONS"
    if not request.target.startswith(b"/") and not is_server_wide:
        raise h11.RemoteProtocolError("the request target must be a path: this is not a proxy")
    if not HOST.fullmatch(headers.get(b"host", b"")):
        raise h11.RemoteProtocolError("Host must be a name or an address, with an optional port")
