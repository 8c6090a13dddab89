"""Telling an event: to the package's logger, and to the policy's listener."""

from __future__ import annotations

import logging

from open_idempotency import events
from open_idempotency._core.commands import Emit

logger = logging.getLogger("open_idempotency")

_LEVELS: dict[type[events.Event], int] = {
    events.OwnershipLost: logging.WARNING,
    events.Recreated: logging.WARNING,
    events.BackendFailed: logging.WARNING,
    events.HookFailed: logging.ERROR,
    events.Unrecorded: logging.ERROR,
    events.FailedOpen: logging.ERROR,
}


def tell(command: Emit) -> None:
    """Log the event and call the listener; a listener that raises is logged and harms no request."""
    event = command.event
    logger.log(_LEVELS.get(type(event), logging.DEBUG), "%s", event)
    if command.listener is None:
        return
    try:
        command.listener(event)
    except Exception:
        logger.exception("the on_event listener raised on %s", type(event).__name__)
