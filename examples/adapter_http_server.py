"""An adapter for a server that the package does not ship: Python's own ``http.server``.

python -m examples.adapter_http_server
"""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from open_idempotency import idem
from open_idempotency.adapter import Adapter
from open_idempotency.hooks import Request, Response


class IdempotentHandler(BaseHTTPRequestHandler):
    """The adapter: a subclass sets ``adapter`` and has ``respond``, as others have ``do_POST``."""

    adapter: Adapter

    def do_POST(self) -> None:
        path, _, query = self.path.partition("?")
        headers = [(name.lower().encode(), value.encode("latin-1")) for name, value in self.headers.items()]
        request = Request("POST", path.encode("latin-1"), query.encode("latin-1"), headers, native=self)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        try:
            response = self.adapter.handle(request, body, lambda: self.respond(body))
        except Exception as error:  # the attempt has failed, and a retry resumes
            self.log_error("%r", error)
            response = Response(500, [], b"")
        self.send_response(response.status)
        for name, value in response.headers:
            if name.lower() != b"content-length":
                self.send_header(name.decode("latin-1"), value.decode("latin-1"))
        self.send_header("Content-Length", str(len(response.body or b"")))
        self.end_headers()
        self.wfile.write(response.body or b"")

    def respond(self, body: bytes) -> Response:
        """The application's response to a POST."""
        raise NotImplementedError


class Payments(IdempotentHandler):
    """An application on it."""

    adapter = Adapter("memory://", required=True)

    def respond(self, body: bytes) -> Response:
        charge = idem.run("charge", lambda: {"charged": json.loads(body)["amount"]})
        return Response(201, [(b"content-type", b"application/json")], json.dumps(charge).encode())


if __name__ == "__main__":
    ThreadingHTTPServer(("127.0.0.1", 8000), Payments).serve_forever()
