"""Adapters for frameworks that this package does not support: one call protects one request.

An adapter is created once, at start. For each request it turns the framework's request into a ``Request``, calls
``handle`` with a function that runs the handler, and sends the ``Response`` that ``handle`` returns. The order of
operations is that of the shipped adapters: admission, the handler under a renewed lease, settlement before the
response leaves. A response is whole: a streamed one must be read to its end first.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from open_idempotency._asgi import ChangingSession, Exchange, Message, Receive, Scope, Send
from open_idempotency._core.admission import Intake, admit
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.keys import find_key, with_echo
from open_idempotency._core.models import Headers, Identity, Request, Response
from open_idempotency._core.settlement import REPLACED, Fate
from open_idempotency._core.stored_response import UNRECORDED
from open_idempotency._engine.bodies import RequestBody
from open_idempotency._engine.engine import Engine, new_owner, running
from open_idempotency._routes.coverage import Route, key_among
from open_idempotency._runtime import processes
from open_idempotency._wsgi import Protection, bound
from open_idempotency.backends.registry import Given
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.policy import IdempotencyPolicy

__all__ = ["Adapter", "AsyncAdapter"]

Handler = Callable[[], Response]
AsyncHandler = Callable[[], Awaitable[Response]]


class Adapter:
    """Protects the requests of a sync framework.

    ``backend``: a URL such as ``sqlite:///idempotency.db`` or an instance. ``policy`` and ``fields``: an
    ``IdempotencyPolicy``, its fields, or both. Raises ``ConfigurationError`` at once if they are wrong. Since 0.1.
    """

    def __init__(
        self,
        backend: Given | None = None,
        *,
        policy: IdempotencyPolicy | None = None,
        **fields: Any,
    ) -> None:
        self._engine = _engine(backend, policy, fields, threads=True)
        self._route = Route.of(self._engine.policy)

    def handle(
        self, request: Request, body: bytes, handler: Handler, *, user: Identity | str | None = None
    ) -> Response:
        """Run the handler, or return a replay or a refusal instead.

        ``request``: header names in lower case, the method in upper case. ``body``: the whole request body.
        ``handler``: called at most once, in this thread; ``idem`` works in it. It returns a whole response, also for
        errors that the framework renders. If it raises, the attempt fails, and the error is raised again. ``user``: the
        sender of the request, as the framework has verified it; None if it is unknown. A request whose method the
        policy does not cover runs without protection. Raises ``ScopeUnknown``.
        """
        policy = self._engine.policy
        if not policy.enabled:
            return bound((Attempt(policy), self._engine), handler)
        if request.method not in policy.methods:
            return handler()
        received = RequestBody(policy)

        def receive() -> RequestBody:
            received.add(body)
            return received

        key = key_among(find_key(request.headers, self._route.likely), self._route)
        intake = Intake(request, key, new_owner(), lambda: user, receive, self._engine.advice, holder=processes.name())
        try:
            admission = self._engine.sync.run(admit(intake, policy))
            if isinstance(admission, Response):
                return admission
            return bound((admission, self._engine), handler) if admission.passes else self._run(admission, handler)
        finally:
            received.close()

    def close(self) -> None:
        """Wait at most five seconds for pending records, then close a backend that was named by a URL.

        For a framework that reports its shutdown. Without this it is closed with the process, or when the adapter is
        garbage-collected. It may be used again afterwards.
        """
        self._engine.opened.close()

    def _run(self, attempt: Attempt, handler: Handler) -> Response:
        protection = Protection(self._engine, attempt)
        try:
            instead = protection.begin()
            if instead is not None:
                return instead
            response = _checked(bound(protection.here, handler))
            protection.capture.start(response.status, response.headers)
            protection.capture.add(response.body or b"")
            verdict = protection.finish()
        except BaseException as error:
            if protection.settled:
                raise
            verdict = protection.abort(error)
            if isinstance(verdict, Response) and isinstance(error, REPLACED):
                return verdict
            raise
        if isinstance(verdict, Response):
            return verdict
        if verdict is Fate.UNRECORDED:
            response = Response(response.status, [*response.headers, UNRECORDED], response.body)
        return response if attempt.echo is None else with_echo(response, attempt.echo)


class AsyncAdapter:
    """Protects the requests of an async framework, on asyncio and on trio; takes the arguments of ``Adapter``.

    Since 0.1.
    """

    def __init__(
        self,
        backend: Given | None = None,
        *,
        policy: IdempotencyPolicy | None = None,
        **fields: Any,
    ) -> None:
        self._engine = _engine(backend, policy, fields, threads=False)
        self._route = Route.of(self._engine.policy)

    async def handle(
        self, request: Request, body: bytes, handler: AsyncHandler, *, user: Identity | str | None = None
    ) -> Response:
        """Run the handler, or return a replay or a refusal; arguments and errors are those of ``Adapter.handle``.

        The handler runs in this task. A cancellation fails the attempt, and is raised again.
        """
        policy = self._engine.policy
        if not policy.enabled:
            mark = running.set((Attempt(policy), self._engine))
            try:
                return await handler()
            finally:
                running.reset(mark)
        if request.method not in policy.methods:
            return await handler()
        call = _Call(self._engine, request, body, handler, user)
        return await call.run(key_among(find_key(request.headers, self._route.likely), self._route))

    async def aclose(self) -> None:
        """See ``Adapter.close``; closes the connections of the running event loop as well."""
        await self._engine.opened.aclose()


def _engine(
    backend: Given | None,
    policy: IdempotencyPolicy | None,
    fields: Mapping[str, Any],
    *,
    threads: bool,
) -> Engine:
    engine = Engine(backend, policy, fields, threads=threads)
    if engine.policy.cover == "marked":
        raise ConfigurationError('cover: "marked" covers nothing here, as this adapter reads no rules; leave it out')
    return engine


class _Call:
    """One request of an ``AsyncAdapter``, as the ASGI exchange sees it: server and application in one."""

    def __init__(
        self, engine: Engine, request: Request, body: bytes, handler: AsyncHandler, user: Identity | str | None
    ) -> None:
        self.engine = engine
        self.request = request
        self._body = body
        self._handler = handler
        self._user = user
        self._sent: Response | None = None

    async def run(self, key_headers: Headers) -> Response:
        """The response to send."""
        request = self.request
        scope: Scope = {
            "type": "http",
            "method": request.method,
            "path": request.path.decode("latin-1"),
            "raw_path": request.path,
            "query_string": request.query,
            "headers": request.headers,
        }
        await _Exchange(self, self.engine.policy, scope, self._receive, self._send).run(key_headers)
        if self._sent is None:
            raise RuntimeError("the request was cancelled while its response was recorded")
        return self._sent

    def identify(self, scope: Scope) -> Identity | str | None:
        return self._user

    def session_of(self, scope: Scope) -> ChangingSession | None:
        return None

    async def call_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        response = _checked(await self._handler())
        await send({"type": "http.response.start", "status": response.status, "headers": response.headers})
        await send({"type": "http.response.body", "body": response.body or b""})

    async def _receive(self) -> Message:
        return {"type": "http.request", "body": self._body}

    async def _send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._sent = Response(message["status"], message["headers"], b"")
        elif self._sent is not None:
            self._sent.body = message["body"]


class _Exchange(Exchange):
    """An exchange whose callables of the policy get the framework's own request."""

    __slots__ = ()

    def _admit(self, request: Request, key_headers: Headers) -> Awaitable[Attempt | Response]:
        assert isinstance(self._inner, _Call)
        return super()._admit(self._inner.request, key_headers)


def _checked(response: object) -> Response:
    if not isinstance(response, Response):
        raise TypeError(f"a handler returns open_idempotency.hooks.Response, not {type(response).__name__}")
    if not isinstance(response.body, bytes | None):
        raise TypeError(f"the body of a Response is bytes, not {type(response.body).__name__}")
    return response
