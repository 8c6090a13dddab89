"""The demo's customers: each sends one order, and prints requests and responses."""

from __future__ import annotations

import json
import uuid

from examples.terminal import Terminal
from examples.workers import Reply, Worker


class Client:
    """A customer with one order, who sends the same key until there is a response."""

    def __init__(self, terminal: Terminal) -> None:
        self._terminal = terminal
        self.sent = 0
        self.headers = {"Idempotency-Key": f'"{uuid.uuid4()}"', "Content-Type": "application/json"}

    def post(self, worker: Worker, order: dict[str, object]) -> Reply | None:
        """Send the order, and print the request and the response."""
        self.show(worker, order)
        reply = self.send(worker, order)
        self._terminal.reply(reply)
        return reply

    def show(self, worker: Worker, order: dict[str, object]) -> None:
        """Print the request."""
        self._terminal.command(f"http://127.0.0.1:{worker.port}/charges", self.headers, self._body(order))

    def send(self, worker: Worker, order: dict[str, object]) -> Reply | None:
        """Send the order."""
        self.sent += 1
        return worker.request("POST", "/charges", self.headers, self._body(order))

    @staticmethod
    def _body(order: dict[str, object]) -> bytes:
        return json.dumps(order).encode()
