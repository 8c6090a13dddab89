"""Coalescing: requests that arrive while the last batch is on its way to the store go out together as the next batch.

No request waits for a timer, and none needs a thread of its own: a caller that finds nothing on its way sends its own
request at once. The store says how a batch is carried out. What waits, in which order and for how long is decided here.
The caller that carries out a batch has the lead, which is one object with one owner at each moment.
"""

from __future__ import annotations

from open_idempotency.backends._shared.coalescing.loops import LoopCoalescer
from open_idempotency.backends._shared.coalescing.queue import Limits
from open_idempotency.backends._shared.coalescing.threads import NOT_ALONE, ThreadCoalescer

__all__ = ["NOT_ALONE", "Limits", "LoopCoalescer", "ThreadCoalescer"]
