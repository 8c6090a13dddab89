"""The type of ``encryption=``. A module of its own, since the policy names it and sealing needs the policy."""

from __future__ import annotations

from typing import Protocol


class Sealer(Protocol):
    """The type of ``encryption=``: authenticated encryption of small byte strings, from any thread.

    Both methods run on the request's thread or event loop, so they must not wait for a network: fetch data keys
    beforehand. ``bound_to`` is a digest of the record, the attempt or the stage that the bytes belong to. Since 0.1.
    """

    def seal(self, plain: bytes, bound_to: bytes, /) -> bytes:
        """The sealed form of ``plain``, which ``unseal`` opens with this ``bound_to`` and with no other."""
        ...

    def unseal(self, sealed: bytes, bound_to: bytes, /) -> bytes:
        """The bytes that were sealed. Raises (anything) for bytes that were changed, moved, or sealed by other keys."""
        ...
