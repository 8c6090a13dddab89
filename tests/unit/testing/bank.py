"""A payment provider for tests: it recognises the keys that it has seen, as real providers do."""

from __future__ import annotations

from typing import Any


class Bank:
    """``charges``: one entry for each key."""

    def __init__(self) -> None:
        self.charges: dict[str, int] = {}

    def charge(self, amount: int, key: str) -> dict[str, Any]:
        """Charge once for each key."""
        self.charges.setdefault(key, amount)
        return {"id": f"ch_{key[-6:]}", "amount": self.charges[key]}

    async def acharge(self, amount: int, key: str) -> dict[str, Any]:
        """The async form of ``charge``."""
        return self.charge(amount, key)

    def count(self) -> int:
        """The number of charges."""
        return len(self.charges)


#: the bank of the applications below
bank = Bank()
