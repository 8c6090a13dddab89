"""One request of a case over HTTP/2 with prior knowledge, for features that no server here has over HTTP/1.1."""

from __future__ import annotations

import h2.config
import h2.connection
import h2.events

from tests.wire.case import Case
from tests.wire.client import Fields, Response

_CONFIG = h2.config.H2Configuration(client_side=True, header_encoding=None)


def over_http2(case: Case) -> tuple[Response, Fields]:
    """The response, and the trailers after it."""
    connection = h2.connection.H2Connection(_CONFIG)
    response, trailers = Response(0, [], b""), Fields()
    with case.server.connect() as opened:
        connection.initiate_connection()
        connection.send_headers(1, _fields(case))
        connection.send_data(1, b"{}", end_stream=True)
        while True:
            opened.sendall(connection.data_to_send())
            data = opened.recv(65536)
            if not data:
                raise ConnectionError("the server closed the connection")
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived):
                    fields = dict(event.headers)
                    response = Response(int(fields[b":status"]), list(event.headers), b"")
                elif isinstance(event, h2.events.DataReceived):
                    response = response._replace(body=response.body + event.data)
                elif isinstance(event, h2.events.TrailersReceived):
                    trailers = list(event.headers)
                elif isinstance(event, h2.events.StreamEnded):
                    return response, trailers


def _fields(case: Case) -> Fields:
    """The request's fields, the same as over HTTP/1.1."""
    line, *rest = case.head(b"TE: trailers").rstrip().split(b"\r\n")
    method, target, _ = line.split(b" ")
    pairs = [(name.lower(), value.strip()) for name, _, value in (field.partition(b":") for field in rest)]
    host = dict(pairs).pop(b"host")
    return [
        (b":method", method),
        (b":scheme", b"http"),
        (b":authority", host),
        (b":path", target),
        *[pair for pair in pairs if pair[0] != b"host"],
    ]
