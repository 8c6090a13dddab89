"""Idempotency keys for any ASGI application: a pure middleware, and one small object for each protected request.

Requests that are not covered pass through untouched: other methods and protocols, and requests without a key. A covered
request goes through the core's order of operations, between the server's ``receive`` and ``send``.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING

from open_idempotency._asgi import MARK, PENDING, App, ChangingSession, Exchange, Message, Receive, Scope, Send
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.identity import entries_of
from open_idempotency._core.models import Identity
from open_idempotency._engine import shutdown
from open_idempotency._engine.engine import Engine, running
from open_idempotency._routes.coverage import NOTHING_MARKED, Coverages, CoveredPaths, PathRules, Route, key_among
from open_idempotency._routes.survey import layers_inside, refuse_wsgi, warn_of_layers, warn_of_stack
from open_idempotency.backends.registry import Given
from open_idempotency.exceptions import ConfigurationError
from open_idempotency.policy import NEVER_COVERED, IdempotencyPolicy
from open_idempotency.rules import IdempotencyRule, PolicyFields, Rule, RulesByPath, exempt, refuse_unread

if TYPE_CHECKING:
    from typing_extensions import Unpack


__all__ = ["MARK", "App", "IdempotencyMiddleware", "IdempotencyRule", "Message", "Receive", "Scope", "Send", "exempt"]


class IdempotencyMiddleware:
    """Protects the requests of an ASGI application that carry an ``Idempotency-Key``.

    ``backend``: a URL such as ``sqlite:///idempotency.db`` or an instance. ``policy`` and ``fields``: an
    ``IdempotencyPolicy``, its fields, or both. ``rules``: paths, each with policy fields of its own, such as
    ``{"/payments/*": {"required": True}, "POST /ping": exempt}``. Raises ``ConfigurationError`` at once for what is
    wrong in them. Since 0.1.
    """

    #: whether routes below may have rules, for a subclass that finds them
    _asks_routes = False

    def __init__(
        self,
        app: App,
        backend: Given | None = None,
        *,
        policy: IdempotencyPolicy | None = None,
        rules: RulesByPath | None = None,
        **fields: Unpack[PolicyFields],
    ) -> None:
        refuse_wsgi(app)
        self.app = app
        self.engine = Engine(backend, policy, fields, threads=False)
        self.coverages = Coverages(self.engine)
        self._rules = self.engine.rules
        self._paths = PathRules(rules, self.coverages) if rules else None
        self._marked_only = self.coverages.marked_only
        self._methods = self._find_methods()
        self._names = self.coverages.default.names
        #: what ends the search for a key: one of these headers, or one that is likely to be meant as one (O-36)
        self._likely = self.coverages.default.likely
        self._always = self.coverages.default.always
        #: the routes that are covered, for operators
        self.covering: CoveredPaths = CoveredPaths(self.coverages, self._paths)
        #: nothing is protected here
        self.off = not self.engine.policy.enabled
        warn_of_stack(app, IdempotencyMiddleware, self.engine.policy)

    def _find_methods(self) -> frozenset[str]:
        """The methods that are covered on some path. Raises ``ConfigurationError`` where nothing ever is."""
        policy = self.engine.policy
        if not policy.enabled:
            self._asks_routes = False
            return frozenset()
        if self._paths is not None:
            return self._paths.methods
        if not self._marked_only:
            return policy.methods
        if not self._asks_routes:
            raise ConfigurationError(NOTHING_MARKED)
        return frozenset()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._asks_routes and (self._rules.in_use or PENDING in scope) and scope["type"] == "http":
            # A rule may ask for a key, name another header, or cover another method.
            if MARK not in scope and scope["method"].upper() not in NEVER_COVERED:
                await self.treat(scope, receive, send)
                return
        # In upper case, as most frameworks read it, whatever the server passes on.
        if scope["type"] != "http" or (method := scope["method"].upper()) not in self._methods or MARK in scope:
            if scope["type"] == "lifespan":
                await self._live(scope, receive, send)
            elif self.off and scope["type"] == "http" and MARK not in scope and scope.get(PENDING) is None:
                # A request that a middleware around this one protects, or may protect, stays that one's.
                scope[PENDING] = None  # for routes with rules: it is known that they are not protected
                await self._run_plainly(self.engine.policy, scope, receive, send)
            else:
                await self.app(scope, receive, send)
            return
        # Without rules for this path and method, the application's own policy decides alone.
        if self._paths is None or not (
            self._marked_only or self.rules_of_path(scope) or method not in self.engine.policy.methods
        ):
            names = self._likely
            for field in scope["headers"]:
                if field[0] in names:
                    break
            else:
                if not self._always:
                    # Written out here: a call would be a third of what a request without a key costs.
                    mark = running.set((Attempt(self.engine.policy), self.engine))
                    try:
                        await self.app(scope, receive, send)
                    finally:
                        running.reset(mark)
                    return
        await self.treat(scope, receive, send)

    def treat(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Handle an HTTP request that is not protected yet and may be covered. This class makes the claim here.

        A subclass may make the claim later, when it knows more about the request.
        """
        return self.cover(self.coverage_of(scope), scope, receive, send)

    def cover(self, coverage: Route | None, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Handle an HTTP request that is not protected yet, by this coverage."""
        if coverage is None or scope["method"].upper() not in coverage.policy.methods:
            return self.app(scope, receive, send)
        key_headers = [field for field in scope["headers"] if field[0] in coverage.likely]
        for name, _ in key_headers:
            if name in coverage.spellings:
                key_headers = key_among(key_headers, coverage)
                break
        if key_headers or coverage.always:
            return Exchange(self, coverage.policy, scope, receive, send).run(key_headers)
        return self._run_plainly(coverage.policy, scope, receive, send)

    def coverage_of(self, scope: Scope) -> Route | None:
        """How an HTTP request that is not protected yet is covered; None if it passes through.

        A subclass may know more about the route of the request.
        """
        return self.coverages.default if self._paths is None else self.coverages.by(self.rules_of_path(scope))

    def rules_of_path(self, scope: Scope) -> tuple[Rule, ...]:
        """The rules of ``rules=`` for the path of an HTTP request, the most specific last."""
        if self._paths is None:
            return ()
        return self._paths.find(
            scope["method"].upper(), scope["path"], scope.get("raw_path"), scope.get("root_path", "")
        )

    async def _run_plainly(self, policy: IdempotencyPolicy, scope: Scope, receive: Receive, send: Send) -> None:
        mark = running.set((Attempt(policy), self.engine))
        try:
            await self.app(scope, receive, send)
        finally:
            running.reset(mark)

    def check_start(self, scope: Scope) -> None:
        """Check the wrapped application when a server starts it; ``ConfigurationError`` keeps the server from starting.

        Warns of CORS and compression inside (R-12). Refuses rules of endpoints that nothing reads (R-15). ``scope``:
        that of the lifespan.
        """
        warn_of_layers(layers_inside(self.app, IdempotencyMiddleware), self.engine.policy)
        if not (self._asks_routes or self.off):
            refuse_unread(self, scope)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application's lifespan, unless ``check_start`` refuses it."""
        try:
            self.check_start(scope)
        except ConfigurationError as error:
            await receive()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        await self.app(scope, receive, self._after_drain(send))

    def _after_drain(self, send: Send) -> Send:
        """Delay the end of the shutdown until everything is recorded: the server ends its process after it (L-06).

        Then what the middleware has opened is closed (B-25).
        """

        async def send_after_drain(message: Message) -> None:
            if message["type"].startswith("lifespan.shutdown"):
                await shutdown.settle()
                await self.engine.opened.aclose()
            await send(message)

        return send_after_drain

    def identify(self, scope: Scope) -> Identity | str | None:
        """The verified user that an outer middleware put into the scope, or the session that may name the caller.

        Plain ASGI knows no user.
        """
        session = scope.get("session")
        return None if session is None else Identity(None, session=entries_of(session))

    def session_of(self, scope: Scope) -> ChangingSession | None:
        """The session by which a changed caller is followed (O-14). Plain ASGI follows none.

        Called only if the scope has a session.
        """
        return None

    def call_app(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        """Call the application for a protected request; a subclass may read the scope before and after."""
        return self.app(scope, receive, send)
