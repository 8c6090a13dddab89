"""A payment provider for tests: it recognises a key that it has seen, as real ones do."""

from __future__ import annotations

from typing import Any


class Bank:
    """``charges``: one for each key that it was given."""

    def __init__(self) -> None:
        self.charges: dict[str, int] = {}

    def charge(self, amount: int, key: str) -> dict[str, Any]:
        """Charge once for each key."""
        self.charges.setdefault(key, amount)
        return {"id": f"ch_{key[-6:]}", "amount": self.charges[key]}

    async def acharge(self, amount: int, key: str) -> dict[str, Any]:
        """``charge``, async."""
        return self.charge(amount, key)

    def count(self) -> int:
        """How many charges there are."""
        return len(self.charges)


#: the one of the applications below
bank = Bank()
