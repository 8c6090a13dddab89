"""One request under Starlette or FastAPI whose claim is made when its endpoint is called (O-18).

The middleware calls the application at once. What the application reads of the body is buffered for the fingerprint.
``at_call`` then makes the claim, on the event loop, after routing, authentication and dependencies. If the endpoint is
not to run, a stand-in response takes the position of its response, so that every layer around it ends as usual. The
stand-in carries a mark. On its way out the middleware replaces it by the stored response.
"""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Iterable
from typing import Any, Protocol

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from open_idempotency._asgi.client import Client
from open_idempotency._asgi.exchange import (
    MARK,
    PENDING,
    App,
    ChangingSession,
    ClientGone,
    Exchange,
    Inner,
    Message,
    Receive,
    Scope,
    Send,
)
from open_idempotency._asgi.exchange import request_of as read_request
from open_idempotency._core import problems
from open_idempotency._core.admission import look_ahead, refuse
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.keys import find_key
from open_idempotency._core.requests import Identity, Response
from open_idempotency._core.settlement import abort
from open_idempotency._core.stored_response import Capture
from open_idempotency._engine import shutdown
from open_idempotency._engine.bodies import RequestBody
from open_idempotency._engine.client_left import Grace
from open_idempotency._engine.current import running
from open_idempotency._engine.event_log import report_late_error
from open_idempotency._routes.coverage import Coverages
from open_idempotency._runtime import loops
from open_idempotency.exceptions import BodyTooLarge
from open_idempotency.policy import IdempotencyPolicy
from open_idempotency.rules import Rule

#: the header of a stand-in, which never leaves this process
STAND_IN = (b"open-idempotency-stand-in", secrets.token_hex(16).encode("ascii"))


class Around(Inner, Protocol):
    """What a pending exchange needs of its middleware."""

    app: App
    coverages: Coverages

    def user_among(self, solved: Any) -> str | None:
        """The identity that the ``user=`` dependency has returned, None if the endpoint does not depend on it."""
        ...

    def session_within(self, scope: Scope) -> ChangingSession | None:
        """The session that was opened inside, which may lead to another caller behind the view (O-14)."""
        ...

    def look_back(self, scope: Scope, policy: IdempotencyPolicy) -> None:
        """Called after an endpoint ran for a caller that was not known as a user."""
        ...

    def report_unclaimed(self, scope: Scope, status: int) -> None:
        """Called after a success was sent for a request that has a key, or needs one, and was never claimed."""
        ...


class PendingExchange(Exchange):
    """A request that may be covered, until its endpoint is called; after that the protected request.

    ``by_path``: the rules for its path. ``keyed``: whether it carries a header that can be its key. Without one its
    body is not buffered.
    """

    __slots__ = (
        "_around", "_bounded", "_by_path", "_claimed_in", "_decided", "_entered", "_instead", "_keeps", "_keyed",
        "_known", "_over", "_reached", "_read", "_refusal", "_request", "_seen", "_solved", "_status", "_unread",
        "stand_in",
    )  # fmt: skip

    def __init__(
        self, around: Around, by_path: tuple[Rule, ...], keyed: bool, scope: Scope, receive: Receive, send: Send
    ) -> None:
        super().__init__(around, around.engine.policy, scope, receive, send)
        self._around = around
        self._by_path = by_path
        self._keyed = keyed
        # Read here, since mounts and inner middleware may write another path into the scope.
        self._request = read_request(scope)
        self._body.bound(around.coverages.largest_request)
        # an endpoint, or another middleware of this library, has taken the request
        self._reached = False
        # the limit of its body is that of its route
        self._bounded = False
        self._refusal: Response | None = None
        # whether the caller is a known user
        self._known = False
        self._keeps = keyed
        # bytes that the application has read before the claim; and whether there are more
        self._read = 0
        self._unread = True
        self._status = 0
        self._seen: Message | None = None
        self._solved: Any = None
        self._instead: Response | None = None
        # what the claim was refused with, for whoever calls the endpoint once more
        self._decided: Response | None = None
        self._claimed_in: Scope | None = None
        # the application has returned; a middleware inside may have left the endpoint to a task of its own
        self._over = False
        self._entered: set[Any] = set()
        #: what FastAPI gets instead of the endpoint's result, until it has got it
        self.stand_in: Any = None

    async def run(self) -> None:  # type: ignore[override]  # its key is read at the claim
        """Call the application. Raises what the application raises."""
        scope = self._scope
        scope[PENDING] = self
        self._session = self._inner.session_of(scope)
        policy, engine = self._policy, self._engine
        # A stage before the claim of a request with a key would be unprotected, so idem raises there.
        mark = running.set(None if self._keyed else (Attempt(policy), engine))
        extensions = self._hide_extensions() if self._keyed else None
        try:
            await (self._run_app(Attempt(policy)) if self._keyed else self._call())
            if self._attempt is not None and not self._settled:
                await self._give_up(self._attempt)
            self._look_back()
        except BaseException as error:
            attempt = self._attempt
            if attempt is None:
                # An error that comes of ending the body early is not the application's.
                if self._refusal is None or not isinstance(error, ClientDisconnect):
                    raise
                await self._respond(self._refusal)
                return
            report_late_error(attempt, error)
            if self._settled or not await self._stand_in(attempt, error):
                raise
        finally:
            self._over = True
            running.reset(mark)
            if scope.get(PENDING) is self:
                del scope[PENDING]
            if extensions is not None:
                scope["extensions"] = extensions
            if self._attempt is not None:
                self._client.end()
            self._claimed_in = self.stand_in = None
            self._body.close()
            self._entered.discard(self)

    def _call(self) -> Awaitable[None]:
        return self._around.app(self._scope, self._receive if self._keyed else self._source, self._send)

    def _look_back(self) -> None:
        if self._claimed_in is not None:
            self._around.look_back(self._claimed_in, self._policy)
        elif not self._reached and 200 <= self._status < 300 and self._is_covered():
            self._around.report_unclaimed(self._scope, self._status)

    def _is_covered(self) -> bool:
        """Whether the request should have been protected, by the rules for its path."""
        coverage = self._around.coverages.by(self._by_path)
        if coverage is None or self._request.method not in coverage.policy.methods:
            return False
        return coverage.policy.required or bool(find_key(self._request.headers, coverage.names))

    # Where the endpoint is called

    def add_rules(self, rules: Iterable[Rule]) -> None:
        """Add the rules of a mount on the way to the endpoint."""
        self._by_path = (*self._by_path, *rules)

    def withdraw(self) -> None:
        """Leave the request to another middleware of the library nearer to the endpoint: the innermost protects."""
        self._let_pass()

    def look_ahead(self, scope: Scope, rules: Iterable[Rule]) -> Response | None:
        """Check key and declared length when the route is known, before FastAPI reads the body.

        Returns the response that refuses the request, or None. A malformed key and a body that is too long are refused
        before the body is read (O-06, O-07).
        """
        if self._bounded or not self._keeps or MARK in scope:
            return None
        coverage = self._around.coverages.by((*self._by_path, *rules))
        key_headers = () if coverage is None else find_key(self._request.headers, coverage.names)
        if coverage is None or not key_headers or self._request.method not in coverage.policy.methods:
            self._let_pass()
            return None
        self._policy, self._bounded = coverage.policy, True
        problem = look_ahead(self._request, key_headers, coverage.policy)
        try:
            self._body.bound(coverage.policy.max_request_bytes)
        except BodyTooLarge:
            problem = problems.body_too_large(coverage.policy.max_request_bytes)
        return None if problem is None else self._replace(self._refused(problem))

    def _refused(self, problem: problems.Problem) -> Response:
        # reporting it waits for nothing, so the sync performer carries it out
        return self._engine.sync.run(refuse(problem, self._request, self._policy))

    async def claim(self, scope: Scope, rules: Iterable[Rule], solved: Any = None) -> Response | None:
        """Make the claim. Returns the response to send instead of calling the endpoint, or None.

        ``scope``: as the endpoint sees it. ``rules``: those of its route. ``solved``: FastAPI's dependencies by
        callable, once they are solved. A request has one claim: where a middleware inside calls the endpoint again, the
        first claim counts. Raises ``ScopeUnknown``, ``ConfigurationError``.
        """
        self._reached = True
        if self._decided is not None:
            return self._replace(self._decided)
        if self._attempt is not None:  # asked through another copy of the scope
            scope[MARK] = self._attempt
            return None
        # Who calls an endpoint when its request is over is not protected, as if the scope had not been copied.
        instead = None if self._over else await self._decide(scope, rules, solved)
        # Not before: until it is decided, nothing runs for whoever catches an error of the claim and calls again.
        if instead is None:
            scope.pop(PENDING, None)
        return instead

    async def _decide(self, scope: Scope, rules: Iterable[Rule], solved: Any) -> Response | None:
        if MARK in scope:  # a hidden middleware of this library protects it
            self._let_pass()
            return None
        coverage = self._around.coverages.by((*self._by_path, *rules))
        if coverage is None or self._request.method not in coverage.policy.methods:
            running.set(None)
            self._let_pass()
            return None
        policy = self._policy = coverage.policy
        key_headers = find_key(self._request.headers, coverage.names)
        if not key_headers and not policy.required:
            running.set((Attempt(policy), self._engine))
            self._let_pass()
            return None
        if key_headers and not self._keyed:
            raise RuntimeError("a rule that names the header of this key was made while the request was on its way")
        return await self._claim(scope, key_headers, solved)

    async def _claim(self, scope: Scope, key_headers: list[tuple[bytes, bytes]], solved: Any) -> Response | None:
        self._request.native, self._solved = scope, solved
        if self._session is None:
            self._session = self._around.session_within(scope)
        self._entered = shutdown.enter(self)
        try:
            admission = await self._admit(self._request, key_headers)
        except ClientGone:
            self._gone = True
            admission = Response(400, [], b"")  # no client gets it, and nothing is to run
        finally:
            self._solved = None
        if isinstance(admission, Response):
            return self._replace(admission)
        self._begin(admission, scope)
        if self._over:
            error = RuntimeError("the request ended while its claim was made, so its endpoint is not called")
            await self._settle(admission, abort(admission, error))
            raise error
        late = await self._late(admission)
        return None if late is None else self._replace(late)

    def _begin(self, attempt: Attempt, scope: Scope) -> None:
        policy = self._policy
        self._attempt = attempt
        self._capture = Capture(policy.max_response_bytes)
        self._client = Client(self._source, Grace(policy.stream_grace, self._capture))
        if self._seen is not None:
            self._client.leave(self._seen)
        self._pieces = self._body.pieces(self._read)
        if self._hold is not None:
            self._hold.protect(attempt)
        scope[MARK] = attempt
        running.set((attempt, self._engine))
        if not self._known:
            self._claimed_in = scope

    def _replace(self, response: Response) -> Response:
        self._instead = self._decided = response
        self._keeps = False
        self._entered.discard(self)
        return response

    def _let_pass(self) -> None:
        self._reached = True
        self._keeps = False
        self._body.close()

    async def _identify(self) -> Identity | str | None:
        user = None if self._solved is None else self._around.user_among(self._solved)
        found = user if user is not None else self._inner.identify(self._request.native)
        self._known = (found.user if isinstance(found, Identity) else found) is not None
        return found

    def _renders(self, error: Exception) -> bool:
        """Whether an ``ExceptionMiddleware`` around the endpoint handles the exception that ``scope=`` has raised."""
        return isinstance(error, HTTPException) and "starlette.exception_handlers" in self._request.native

    async def _receive_body(self) -> RequestBody:
        """The whole body: what the application has read, and the rest."""
        body, limit = self._body, self._policy.max_request_bytes
        if not self._keeps:
            raise BodyTooLarge(f"over {body.size} bytes")
        body.bound(limit)
        for name, value in self._request.headers:
            if name == b"content-length":
                body.check_length(value)
        while self._unread:
            message = await self._source()
            if message["type"] == "http.disconnect":
                raise ClientGone
            await self._take(message)
        if self._over:  # the body was closed meanwhile
            raise ClientGone
        return body

    async def _take(self, message: Message) -> None:
        for _ in self._body.add_in_turns(message.get("body", b"")):
            await loops.sleep(0)
        self._unread = message.get("more_body", False)

    # What the application sees

    async def _receive(self) -> Message:
        if self._attempt is not None:
            return await super()._receive()
        message = {"type": "http.disconnect"} if self._refusal is not None else await self._source()
        if message["type"] == "http.disconnect":
            self._seen = message
        elif self._keeps:
            try:
                await self._take(message)
            except BodyTooLarge:
                self._keeps = False  # a claim, if there is one, is refused (O-07)
                if self._bounded:  # nor is the rest received, as if the client had left
                    self._refusal = self._refused(problems.body_too_large(self._policy.max_request_bytes))
                    return {"type": "http.disconnect"}
            self._read = self._body.size
            self._more = self._unread
        return message

    async def _send(self, message: Message) -> None:
        if self._refusal is not None and message["type"] == "http.response.start":
            await self._respond(self._refusal)
            return
        if self._instead is not None and message["type"] == "http.response.start":
            instead, self._instead = self._instead, None
            headers = [tuple(header) for header in message.get("headers", ())]
            # Middleware that makes a new response of the body, and loses the mark, leaves the status as it is.
            if STAND_IN in headers or message["status"] == instead.status:
                await self._respond(instead)
                return
            # A layer around the endpoint has made another response, such as the error of a dependency.
        if self._attempt is not None:
            await super()._send(message)
        elif not self._gone:
            if message["type"] == "http.response.start":
                self._status = message["status"]
            await self._outlet(message)
