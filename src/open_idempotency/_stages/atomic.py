"""The whole response in the application's own transaction (S-06): what ``Idem.atomic`` makes, sync and async."""

from __future__ import annotations

from types import TracebackType
from typing import Any, TypeVar

from open_idempotency._core.attempt import Attempt
from open_idempotency._core.drivers import Steps
from open_idempotency._core.recording import make_sure
from open_idempotency._core.requests import Headers, Response
from open_idempotency._engine.current import Performers, here
from open_idempotency._runtime import clocks
from open_idempotency._stages.blocks import check_sync_or_async, refuse_loop
from open_idempotency.exceptions import ConfigurationError, NotStarted
from open_idempotency.ledger.steps import Transaction, fence, save_response
from open_idempotency.ledger.transactions import transaction_of


def response_of(response: Any) -> Response:
    """Status, headers and body. Raises ``TypeError`` for what has not all three, such as a stream."""
    if isinstance(response, Response):
        return response
    for read in (_of_starlette, _of_werkzeug, _of_django):
        found = read(response)
        if found is not None:
            return found
    raise TypeError(
        f"block.respond() takes a whole response of Starlette's, Flask's or Django's, not {type(response).__name__}; "
        "in Flask make_response(...) makes one, in FastAPI JSONResponse(...)"
    )


def _of_starlette(response: Any) -> Response | None:
    headers, body = getattr(response, "raw_headers", None), getattr(response, "body", None)
    if headers is None or not isinstance(body, bytes):
        return None
    return Response(response.status_code, list(headers), body)


def _of_werkzeug(response: Any) -> Response | None:
    if not hasattr(response, "get_wsgi_headers") or not response.is_sequence:
        return None
    return Response(response.status_code, _pairs(response.headers.items()), response.get_data())


def _of_django(response: Any) -> Response | None:
    if getattr(response, "streaming", True) or not hasattr(response, "content"):
        return None
    cookies = [("Set-Cookie", cookie.OutputString()) for cookie in response.cookies.values()]
    return Response(response.status_code, _pairs([*response.items(), *cookies]), response.content)


def _pairs(items: Any) -> Headers:
    return [(name.encode("latin-1"), str(value).encode("latin-1")) for name, value in items]


R = TypeVar("R")
_WHAT = "idem.atomic"


def _entering(transaction: Transaction, attempt: Attempt) -> Steps[None]:
    """As for a stage: where the lease may have ended unnoticed, its owner is asked for before any effect (S-07)."""
    if clocks.elapsed() > attempt.sure_until:
        yield from make_sure(attempt)
    yield from fence(transaction, attempt, whole=True)


class AtomicBlock:
    """A block of a view whose response commits with the caller's rows: what ``Idem.atomic`` makes.

    ``optional``: it may end without a response, since whoever made it rolls back then.
    """

    __slots__ = ("_attempt", "_entered", "_optional", "_response", "_tx", "kept")

    def __init__(self, tx: object, *, optional: bool = False) -> None:
        self._tx = tx
        self._optional = optional
        self._attempt: Attempt | None = None
        self._response: Response | None = None
        #: at the block's end: whether the response is in the transaction; None without a key or a response. If it is
        #: false, such as for a 503, a retry runs again, so the caller's rows are better rolled back
        self.kept: bool | None = None
        #: None without a key, where nothing is kept
        self._entered: tuple[Transaction, Attempt, Performers] | None = None

    def respond(self, response: R) -> R:
        """Hand over the response to keep, and return it. A response of Starlette's, Flask's or Django's, with its body.

        Raises ``TypeError`` for another one, and for a stream.
        """
        self._response = response_of(response)
        return response

    def _enter(self, awaited: bool) -> tuple[Steps[None], Performers] | None:
        attempt, performers = here()
        attempt.check_running()
        self._attempt = attempt
        if attempt.lease is None and attempt.policy.strict_stages:
            raise NotStarted("this request has no idempotency key, and strict_stages asks for one")
        # A wrong response is reported for requests without a key, too.
        transaction = transaction_of(self._tx)
        check_sync_or_async(_WHAT, transaction.awaited, awaited)
        if attempt.lease is None:
            return None
        self._entered = transaction, attempt, performers
        return _entering(transaction, attempt), performers

    def _leave(self, error: BaseException | None) -> tuple[Steps[bool], Performers] | None:
        if error is not None:
            return None
        if self._response is None:
            self._refuse_silence()
            return None
        if self._entered is None:
            return None
        transaction, attempt, performers = self._entered
        return save_response(transaction, attempt, self._response), performers

    def _refuse_silence(self) -> None:
        """Without a response the rows would commit alone, with or without a key, and a retry would make them again."""
        if not self._optional and self._attempt is not None and self._attempt.keep is not False:
            raise ConfigurationError(
                f"{_WHAT}: the block ended without a response; hand it over with block.respond(response), or call "
                "idem.discard() and roll back where there is none to keep"
            )

    def __enter__(self) -> AtomicBlock:
        refuse_loop(_WHAT, "`async with idem.atomic(...)` with a transaction that is awaited, or a `def` view")
        if todo := self._enter(awaited=False):
            todo[1].sync.run(todo[0])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if todo := self._leave(error):
            self.kept = todo[1].sync.run(todo[0])

    async def __aenter__(self) -> AtomicBlock:
        if todo := self._enter(awaited=True):
            await todo[1].aio.run(todo[0])
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if todo := self._leave(error):
            self.kept = await todo[1].aio.run(todo[0])
