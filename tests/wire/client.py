"""An HTTP/1.1 client that controls its connection and shows the bytes that come back.

Nothing here corrects a request, joins header fields, or hides an interim response.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterable
from types import TracebackType
from typing import NamedTuple

Fields = list[tuple[bytes, bytes]]


class Response(NamedTuple):
    """A response as received: names in lower case, in order, with duplicates."""

    status: int
    headers: Fields
    body: bytes

    def values(self, name: bytes) -> list[bytes]:
        """The values of a field, in order."""
        return [value for key, value in self.headers if key == name]

    @property
    def replayed(self) -> bool:
        """Whether it is marked as a replay."""
        return self.values(b"idempotent-replayed") == [b"true"]


class Connection:
    """One connection, read as bytes or as responses."""

    def __init__(self, opened: socket.socket) -> None:
        self.socket = opened
        self._file = opened.makefile("rb")

    def __enter__(self) -> Connection:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        self.socket.sendall(data)

    def close(self) -> None:
        """Close the connection."""
        self._file.close()
        self.socket.close()

    def reset(self) -> None:
        """Reset the connection, as a crashed client does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    def half_close(self) -> None:
        """Close the sending side, and go on reading."""
        self.socket.shutdown(socket.SHUT_WR)

    def read_head(self) -> Response:
        """The next status and header fields, interim ones too; the body is not read yet."""
        line = self._file.readline()
        if not line:
            raise ConnectionError("the server closed the connection")
        status = int(line.split(b" ", 2)[1])
        headers: Fields = []
        for line in iter(self._file.readline, b"\r\n"):
            assert line.endswith(b"\r\n"), line
            name, _, value = line.partition(b":")
            headers.append((name.lower(), value.strip()))
        return Response(status, headers, b"")

    def read_chunk(self) -> bytes:
        """The next chunk of a chunked body; empty at its end."""
        size = int(self._file.readline().partition(b";")[0], 16)
        data = self._file.read(size)
        assert len(data) == size
        assert self._file.readline() == b"\r\n"
        return data

    def read_piece(self, head: Response, size: int) -> bytes:
        """The next bytes of a body, up to ``size`` of them where it is not chunked."""
        if head.values(b"transfer-encoding") == [b"chunked"]:
            return self.read_chunk()
        return self._file.read1(size)

    def read_body(self, head: Response) -> bytes:
        """The body of a response with this head."""
        if head.status in (204, 304) or head.status < 200:
            return b""
        if head.values(b"transfer-encoding") == [b"chunked"]:
            return b"".join(iter(self.read_chunk, b""))
        lengths = head.values(b"content-length")
        if not lengths:
            return self._file.read()
        body = self._file.read(int(lengths[0]))
        assert len(body) == int(lengths[0]), "the body ended early"
        return body

    def read(self, *, bodiless: bool = False) -> Response:
        """The next final response, whole. ``bodiless``: it responds to a HEAD."""
        head = self.read_head()
        while head.status < 200:
            head = self.read_head()
        return head if bodiless else head._replace(body=self.read_body(head))


def chunked(pieces: Iterable[bytes]) -> bytes:
    """The pieces as a chunked body."""
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
