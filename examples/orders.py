"""What a client may order, checked by hand for the frameworks that have no validation of their own."""

from __future__ import annotations

import json
from dataclasses import dataclass

MOST = 100


class BadOrder(Exception):
    """The client's body is not an order; the message says what is wrong."""


@dataclass(frozen=True)
class Order:
    """Goods, how many of them, and the token of the card that pays."""

    sku: str
    quantity: int
    card: str

    @classmethod
    def from_body(cls, body: bytes) -> Order:
        """The order in a request body. Raises ``BadOrder``."""
        try:
            data = json.loads(body)
        except ValueError as error:
            raise BadOrder(f"not JSON: {error}") from error
        if not isinstance(data, dict):
            raise BadOrder("send a JSON object with sku, quantity and card")
        for name in ("sku", "card"):
            if not isinstance(data.get(name), str) or not data[name]:
                raise BadOrder(f"{name}: expected a text")
        quantity = data.get("quantity")
        if not isinstance(quantity, int) or isinstance(quantity, bool) or not 1 <= quantity <= MOST:
            raise BadOrder(f"quantity: expected a number from 1 to {MOST}")
        return cls(data["sku"], quantity, data["card"])
