"""One request under Starlette or FastAPI whose claim is made when its endpoint is called (O-18).

The middleware calls the application at once. The part of the body that the application reads is buffered for the
fingerprint. ``at_call`` then makes the claim, on the event loop, after routing, authentication and dependencies. If the
endpoint must not run, a stand-in response passes through the layers instead, so that each of them ends as usual. The
stand-in carries a mark, by which the middleware recognises it and replaces it with the stored response.

If a view changes the caller, Starlette's session leads a retry to the record (O-14). The session is in a cookie, so a
client that has lost the response still has the session that it sent, and the application's own authentication decides
at the next request whom a changed session names. So the session carries the id of the record, and a digest of its
content after the view. A retry finds the record if the content is unchanged and names the verified user. If the session
itself names the caller (O-19), or ``scope=`` does, the new caller is known at once, and the session carries the id of
the record for that caller.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterable, MutableMapping
from typing import Any, Protocol

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from open_idempotency._asgi import (
    MARK,
    PENDING,
    App,
    ChangingSession,
    Client,
    ClientGone,
    Exchange,
    Inner,
    Message,
    Receive,
    Scope,
    Send,
)
from open_idempotency._asgi import request_of as read_request
from open_idempotency._core.admission import refuse_ahead
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.caller_changes import Change
from open_idempotency._core.commands import DrawReference, Driver, Emit
from open_idempotency._core.identity import entries_of
from open_idempotency._core.keys import Caller, find_key
from open_idempotency._core.models import Identity, Response
from open_idempotency._core.problems import Problem, body_too_large
from open_idempotency._core.rendering import refuse
from open_idempotency._core.settlement import abort
from open_idempotency._core.stored_response import Capture
from open_idempotency._engine import shutdown
from open_idempotency._engine.bodies import RequestBody, may_pass
from open_idempotency._engine.engine import running
from open_idempotency._engine.event_log import draw_reference, report, report_late_error
from open_idempotency._engine.shutdown import Grace
from open_idempotency._routes.coverage import Coverages
from open_idempotency._runtime import loops
from open_idempotency.exceptions import BodyTooLarge
from open_idempotency.policy import IdempotencyPolicy
from open_idempotency.rules import Rule, exempts

# The session of a changed caller (O-14)

_NAME = "_open_idempotency"


class SessionTrace:
    """The session of one request, opened by a ``SessionMiddleware``. Reading it changes no response.

    ``sent``: the ``SessionMiddleware`` is inside, so its cookie is written before ``change`` can be called.
    """

    __slots__ = ("_before", "_reported", "_sent", "_session")

    def __init__(self, session: MutableMapping[str, Any], *, sent: bool = False) -> None:
        self._session = session
        self._sent = sent
        self._reported = False
        self._before = self._content()

    def carried(self, caller: Caller) -> bytes | None:
        """The record of the request that made this session, if it was this same request."""
        content = self._content()
        began = content.get(_NAME)
        if not isinstance(began, dict):
            return None
        if _is_of_application(caller):
            found = began.get(self._seal(caller)) if _names(content, caller.user) else None
        else:
            found = began.get(caller.own.hex()) if caller.named else None
        return bytes.fromhex(found) if isinstance(found, str) else None

    def lost(self) -> str | None:
        """None: a server cannot end a session in a cookie."""
        return None

    def change(self, caller: Caller, record_id: bytes) -> Change | None:
        """The change that the view has made to the caller, or None. To be called before the session is sent.

        Every session that the view has changed carries the record, since it may name another user now.
        """
        content = self._content()
        if self._reported or content == self._before:
            return None
        self._reported = True
        names: list[str] = []
        if _is_of_application(caller):
            changed = followed = _names(self._before, caller.user) and not _names(content, caller.user)
        else:
            after = caller.as_left(None, content)
            now = caller.record(after)
            changed = now != caller.own
            followed = changed and now is not None and caller.names(after)
            if followed and now is not None:
                names.append(now.hex())
        if not callable(caller.policy.scope):
            # The application's authentication may have verified the user by this session.
            names.append(self._seal(caller))
        if self._sent:
            return Change(False) if changed else None
        if names and content:
            self._session[_NAME] = dict.fromkeys(names, record_id.hex())
        return Change(followed and bool(content)) if changed else None

    def _content(self) -> dict[str, Any]:
        return entries_of(self._session)

    def _seal(self, caller: Caller) -> str:
        content = {name: value for name, value in self._content().items() if name != _NAME}
        # In the form that is read from the cookie, where keys are text.
        text = json.dumps(json.loads(json.dumps(content, default=str)), sort_keys=True)
        return caller.of_session(hashlib.sha256(text.encode()).hexdigest()).hex()


def _is_of_application(caller: Caller) -> bool:
    """Whether the application's authentication has verified the caller."""
    return caller.user is not None and not callable(caller.policy.scope)


def _names(content: dict[str, Any], user: str | None) -> bool:
    """Whether a session contains the user, so that the user is known by the session."""
    return user is not None and any(type(value) in (str, int) and str(value) == user for value in content.values())


# The request

#: the header of a stand-in, which never leaves this process
STAND_IN = (b"open-idempotency-stand-in", secrets.token_hex(16).encode("ascii"))


class Around(Inner, Protocol):
    """What a pending exchange needs of its middleware."""

    app: App
    coverages: Coverages

    def user_among(self, solved: Any) -> str | None:
        """The identity that the ``user=`` dependency has returned; None if the endpoint does not depend on it."""
        ...

    def session_within(self, scope: Scope) -> ChangingSession | None:
        """The session that was opened inside, which may name another caller after the view (O-14)."""
        ...

    def look_back(self, scope: Scope, policy: IdempotencyPolicy) -> None:
        """Called after an endpoint ran for a caller who was not known as a user."""
        ...

    def report_unclaimed(self, scope: Scope, status: int) -> None:
        """Called after a success was sent for a request that has a key, or needs one, and was never claimed."""
        ...


#: carries out the commands of a refusal
_reporting = Driver({DrawReference: draw_reference, Emit: report})


class PendingExchange(Exchange):
    """A request that may be covered, until its endpoint is called; after that the protected request.

    ``by_path``: the rules for its path. ``keyed``: whether it carries a header that can be its key. Without one its
    body is not buffered. ``outer``: the same request in an outer middleware of the library, which protects the request
    if this middleware does not.
    """

    __slots__ = (
        "_around", "_bounded", "_by_path", "_claimed_in", "_decided", "_entered", "_instead", "_keeps", "_keyed",
        "_known", "_outer", "_over", "_passed", "_reached", "_read", "_refusal", "_request", "_seen", "_solved",
        "_status", "_unread", "stand_in",
    )  # fmt: skip

    def __init__(
        self,
        around: Around,
        by_path: tuple[Rule, ...],
        keyed: bool,
        scope: Scope,
        receive: Receive,
        send: Send,
        outer: PendingExchange | None = None,
    ) -> None:
        super().__init__(around, around.engine.policy, scope, receive, send)
        self._around = around
        self._by_path = by_path
        self._keyed = keyed
        self._outer = outer
        # Read here, since mounts and inner middleware may write another path into the scope.
        self._request = read_request(scope)
        # mounts and the route on the way to the endpoint, each with its template
        self._passed: list[tuple[Any, str]] = []
        self._body.bound(around.coverages.largest_request)
        # an endpoint, or another middleware of this library, has taken the request
        self._reached = False
        # whether the limit of its body is that of its route
        self._bounded = False
        self._refusal: Response | None = None
        # whether the caller is a known user
        self._known = False
        self._keeps = keyed
        # how many bytes the application has read before the claim; and whether there are more
        self._read = 0
        self._unread = True
        self._status = 0
        self._seen: Message | None = None
        self._solved: Any = None
        self._instead: Response | None = None
        # the response that refused the claim, in case the endpoint is called again
        self._decided: Response | None = None
        self._claimed_in: Scope | None = None
        # the application has returned; a middleware inside may have left the endpoint to a task of its own
        self._over = False
        self._entered: set[Any] = set()
        #: FastAPI gets this instead of the endpoint's result, once
        self.stand_in: Any = None

    def may_have_key(self, rules: Iterable[Rule]) -> bool:
        """Whether the request has a header that can be its key, or ``key=`` may find one under these rules."""
        if not self._keyed or not self._has_no_header():
            return self._keyed
        coverage = self._around.coverages.by((*self._by_path, *rules))
        return coverage is not None and coverage.policy.key is not None

    async def run(self) -> None:  # type: ignore[override]  # its key is read at the claim
        """Call the application. Raises what the application raises."""
        scope = self._scope
        scope[PENDING] = self
        self._session = self._inner.session_of(scope)
        policy, engine = self._policy, self._engine
        # A stage before the claim of a request with a key would be unprotected, so idem raises.
        mark = running.set(None if self._keyed else (Attempt(policy), engine))
        extensions = self._hide_extensions() if self._keyed else None
        try:
            app = self._around.app
            await (self._run_app(Attempt(policy), app) if self._keyed else app(scope, self._source, self._send))
            if self._attempt is not None and not self._settled:
                await self._give_up(self._attempt)
            self._look_back()
        except BaseException as error:
            attempt = self._attempt
            if attempt is None:
                # An error that results from ending the body early is not one of the application.
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
                scope[PENDING] = None
            if extensions is not None:
                scope["extensions"] = extensions
            if self._attempt is not None:
                self._client.end()
            self._claimed_in = self.stand_in = None
            self._body.close()
            self._entered.discard(self)

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
        return coverage.always or bool(find_key(self._request.headers, coverage.names))

    # Where the endpoint is called

    def add_rules(self, rules: Iterable[Rule]) -> None:
        """Add the rules of a mount on the way to the endpoint."""
        self._by_path = (*self._by_path, *rules)

    def withdraw(self) -> None:
        """Leave the request to another middleware of the library nearer to the endpoint.

        The innermost of those that cover a request protects it.
        """
        self._let_pass()
        if self._outer is not None:
            self._outer.withdraw()

    def look_ahead(self, scope: Scope, rules: Iterable[Rule]) -> Response | None:
        """Check key and declared length when the route is known, before FastAPI reads the body.

        Returns the response that refuses the request, or None. A malformed key and a body that is too long are refused
        before the body is read (O-06, O-07).
        """
        if self._bounded or not self._keeps or MARK in scope:
            return None
        of_route = tuple(rules)
        applying = (*self._by_path, *of_route)
        coverage = self._around.coverages.by(applying)
        key_headers = () if coverage is None else find_key(self._request.headers, coverage.names)
        keyed = coverage is not None and (key_headers or coverage.policy.key is not None)
        if coverage is None or not keyed or self._request.method not in coverage.policy.methods:
            self._let_pass()
            if running.get() is None and self._has_no_header():
                # It was treated as a request that may have a key, as another route has key=.
                running.set((Attempt(self._policy if coverage is None else coverage.policy), self._engine))
            if self._outer is None:
                return None
            if exempts(applying):  # an exemption holds for all middlewares, as at the claim
                self._outer.withdraw()
                return None
            return self._outer.look_ahead(scope, of_route)
        if self._outer is not None:
            self._outer.withdraw()
        self._policy, self._bounded = coverage.policy, True
        problem = refuse_ahead(self._request, key_headers, coverage.policy)
        try:
            self._body.bound(coverage.policy.max_request_bytes, keeps_all=may_pass(coverage.policy))
        except BodyTooLarge:
            if not may_pass(coverage.policy):
                problem = body_too_large(coverage.policy.max_request_bytes)
        return None if problem is None else self._replace(self._refuse(problem))

    def _has_no_header(self) -> bool:
        """Whether the request has none of the headers that carry a key under some rule."""
        named = {name.lower().encode("ascii") for name in self._engine.rules.headers}
        return not find_key(self._request.headers, self._around.coverages.default.names | named)

    def _refuse(self, problem: Problem) -> Response:
        """The response of a problem, which is reported at once."""
        instance = self._request.path.decode("latin-1")
        return _reporting.run(refuse(problem, self._policy, instance, of=self._request))

    def pass_route(self, route: Any, template: str) -> None:
        """Note that the request has reached a mount or a route. Its template is that of all of them, joined."""
        passed = self._passed
        for index, (known, _) in enumerate(passed):
            if known is route:  # called again
                del passed[index:]
                break
        passed.append((route, template))
        self._request.route = "".join([part for _, part in passed])

    async def claim(self, scope: Scope, rules: Iterable[Rule], solved: Any = None) -> Response | None:
        """Make the claim. Returns the response to send instead of calling the endpoint, or None.

        ``scope``: as the endpoint sees it. ``rules``: those of its route. ``solved``: FastAPI's dependencies by
        callable, once they are solved. A request has one claim: if a middleware inside calls the endpoint again, the
        first claim counts. Raises ``ScopeUnknown``, ``ConfigurationError``.
        """
        self._reached = True
        if self._decided is not None:
            return self._replace(self._decided)
        if self._attempt is not None:  # called with another copy of the scope
            scope[MARK] = self._attempt
            return None
        # An endpoint that is called after its request is over is not protected, as with an uncopied scope.
        instead = None if self._over else await self._decide(scope, rules, solved)
        # Not earlier: if code catches an error of the claim and calls again, the endpoint must not run undecided.
        if instead is None:
            scope[PENDING] = None
        return instead

    async def _decide(self, scope: Scope, rules: Iterable[Rule], solved: Any) -> Response | None:
        if MARK in scope:  # a hidden middleware of this library protects it
            self.withdraw()
            return None
        rules = tuple(rules)
        coverage = self._around.coverages.by((*self._by_path, *rules))
        if coverage is None or self._request.method not in coverage.policy.methods:
            running.set(None)
            self._let_pass()
            return await self._leave_to_outer(scope, rules, solved)
        policy = self._policy = coverage.policy
        key_headers = find_key(self._request.headers, coverage.names)
        if not key_headers and not coverage.always:
            running.set((Attempt(policy), self._engine))
            self._let_pass()
            if self._outer is not None and not self._outer.may_have_key(rules):
                self._outer.withdraw()  # only the keys that the outer one can read matter, not whether it requires one
                return None
            return await self._leave_to_outer(scope, rules, solved)
        if (key_headers or policy.key is not None) and not self._keyed:
            raise RuntimeError("a rule that names the header of this key was added while the request was in progress")
        if self._outer is not None:
            self._outer.withdraw()
        return await self._claim(scope, key_headers, solved)

    async def _leave_to_outer(self, scope: Scope, rules: tuple[Rule, ...], solved: Any) -> Response | None:
        """Let the outer middleware protect the request, since this one does not cover it.

        If this middleware exempts the request, it is exempt in the outer one too.
        """
        outer = self._outer
        if outer is None:
            return None
        if exempts((*self._by_path, *rules)):
            outer.withdraw()
            return None
        plainly = running.get()
        instead = await outer.claim(scope, rules, solved)
        if instead is None and MARK not in scope and plainly is not None:
            running.set(plainly)
        return instead

    async def _claim(self, scope: Scope, key_headers: list[tuple[bytes, bytes]], solved: Any) -> Response | None:
        self._request.native, self._solved = scope, solved
        if self._session is None:
            self._session = self._around.session_within(scope)
        self._entered = shutdown.enter(self)
        try:
            admission = await self._admit(self._request, key_headers)
        except ClientGone:
            self._gone = True
            admission = Response(400, [], b"")  # no client gets it, and the endpoint must not run
        finally:
            self._solved = None
        if isinstance(admission, Response):
            return self._replace(admission)
        if admission.passes:
            running.set((admission, self._engine))
            self._entered.discard(self)
            self._keeps, self._whole = False, not self._unread
            self._pass(self._read)
            return None
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
        if self._session is not None:
            self._caller = attempt.take_caller()
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
        body.bound(limit, keeps_all=may_pass(self._policy))
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
        self._unread = message.get("more_body", False)
        for _ in self._body.add_in_turns(message.get("body", b"")):
            await loops.sleep(0)

    # What the application sees

    async def _receive(self) -> Message:
        if self._attempt is not None or self._passes:
            return await super()._receive()
        message = {"type": "http.disconnect"} if self._refusal is not None else await self._source()
        if message["type"] == "http.disconnect":
            self._seen = message
        elif self._keeps:
            try:
                await self._take(message)
            except BodyTooLarge:
                self._keeps = False  # a claim, if there is one, is refused (O-07)
                if self._bounded and not may_pass(self._policy):  # nor is the rest received, as if the client had left
                    self._refusal = self._refuse(body_too_large(self._policy.max_request_bytes))
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
