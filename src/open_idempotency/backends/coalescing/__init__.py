"""Coalescing: what is asked of a server while the last batch is on its way goes out together as the next batch.

No question waits for a timer, and none needs a thread of its own: an asker that finds nothing on its way sends its own
question at once. How a batch is carried out is the backend's; what waits, in which order and for how long is decided
here, once for all of them. Whoever carries out a batch has the lead, which is one object with one owner at each moment.
"""

from __future__ import annotations

from open_idempotency.backends.coalescing.in_threads import NOT_ALONE, ThreadCoalescer
from open_idempotency.backends.coalescing.on_loops import LoopCoalescer
from open_idempotency.backends.coalescing.waiting import Limits

__all__ = ["NOT_ALONE", "Limits", "LoopCoalescer", "ThreadCoalescer"]
