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
    events.Uncommitted: logging.ERROR,
    events.CredentialScoped: logging.WARNING,
}
_ADVICE: dict[type[events.Event], str] = {
    events.Uncommitted: (
        "the view returned a response, and the transaction of its tx= or idem.atomic was left open or rolled back, so "
        "the response does not count and the client got a 500; commit before the view returns, as "
        "`with session.begin():` around it does, and after a rollback return another response"
    ),
    events.CredentialScoped: (
        "callers are told apart by their Authorization field alone, so a client whose token changes between two tries "
        "is a new caller, and its retry runs again; put the middleware inside authentication, or set scope="
    ),
}


def tell(command: Emit) -> None:
    """Log the event and call the listener; a listener that raises is logged and harms no request."""
    event = command.event
    kind = type(event)
    advice = _ADVICE.get(kind)
    logger.log(_LEVELS.get(kind, logging.DEBUG), "%s" if advice is None else f"%s: {advice}", event)
    if command.listener is None:
        return
    try:
        command.listener(event)
    except Exception:
        logger.exception("the on_event listener raised on %s", type(event).__name__)
