"""Django's middleware: sync and async in one class. Neither adds a thread hop or an event loop.

The claim is made in the view hook. At that time the view and its rule are known, every middleware (authentication, for
one) has let the request pass, and ATOMIC_REQUESTS has not begun its transaction.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Iterable, Iterator
from typing import Any, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.apps import apps
from django.core.handlers.base import BaseHandler
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.urls import Resolver404, URLPattern, URLResolver, get_resolver, resolve

from open_idempotency import asgi
from open_idempotency._core.attempt import Attempt
from open_idempotency._engine import shutdown, thread_calls
from open_idempotency._engine.engine import Covered, Protected, Running, finders, running
from open_idempotency._routes.coverage import CoveredPaths, Route, spelling
from open_idempotency._wsgi import MARK
from open_idempotency.django import layers, private
from open_idempotency.django.conf import configure
from open_idempotency.django.exchange import Exchange, bind_stream
from open_idempotency.policy import NEVER_COVERED, IdempotencyPolicy
from open_idempotency.rules import Rule

GetResponse = Callable[[HttpRequest], Any]

_logger = logging.getLogger("open_idempotency")
_ATTRIBUTE = "_open_idempotency_exchange"


class IdempotencyMiddleware:
    """Protects the requests of a Django project that carry an ``Idempotency-Key``.

    Configured by the settings ``IDEMPOTENCY_BACKEND`` (a URL or an instance), ``IDEMPOTENCY_POLICY``,
    ``IDEMPOTENCY_<FIELD>`` for each field of ``IdempotencyPolicy``, and ``IDEMPOTENCY_RULES`` for paths. Raises
    ``ConfigurationError`` at once for wrong settings. The caller is ``request.user``, or the identity that the session
    names (``IDEMPOTENCY_SESSION_IDENTITY``). Since 0.1.
    """

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: GetResponse) -> None:
        private.look()
        self.get_response = get_response
        self._awaits = iscoroutinefunction(get_response)
        self.engine, self._coverages, self._paths = configure(threads=not self._awaits)
        if not apps.is_installed("open_idempotency.django"):
            _logger.warning(
                'INSTALLED_APPS: "open_idempotency.django" is missing, so `manage.py check` does not see what is wrong '
                "with the middleware's position and rules; add it"
            )
        self._rules = self.engine.rules
        self._off = not self.engine.policy.enabled
        if self._paths is not None or self._coverages.marked_only:
            self._rules.in_use = True
        self._learned = 0
        self._found_view = False
        if not self._off:
            # Django inspects this attribute to decide whether to adapt the hook to sync or async.
            self.process_view = self._abegin if self._awaits else self._begin
        if self._awaits:
            thread_calls.hook()
            markcoroutinefunction(cast("Callable[..., Any]", self))

    def __call__(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        if request.method in NEVER_COVERED or _is_protected(request):
            response: HttpResponseBase | Awaitable[HttpResponseBase] = self.get_response(request)
            return response
        if self._off:
            return self._pass(request)
        # Before the first view, the URLs and the rules of their views may not be loaded.
        keyed = not self._found_view or self._is_keyed(request)
        if not keyed and not self._coverages.marked_only and request.method in self.engine.policy.methods:
            for name in self._coverages.default.environ_spellings:
                if name in request.META:
                    spelling.warn(name, self.engine.policy)
        # key= is known together with the view. Until then any request may have a key.
        makes_keys = self._rules.makes_keys or self.engine.policy.key is not None
        if not keyed and not makes_keys and not self.engine.policy.required and not self._rules.in_use:
            return self._pass(request)
        exchange = Exchange(self.engine, request)
        setattr(request, _ATTRIBUTE, exchange)
        # A body that was read before is an error only for a request with a key.
        if keyed or (makes_keys and not private.is_partly_read(request)):
            exchange.record()
        keyed = keyed or makes_keys
        return self._arun(request, exchange, keyed) if self._awaits else self._run(request, exchange)

    def _is_keyed(self, request: HttpRequest) -> bool:
        if self._rules.in_use and len(self._rules.headers) != self._learned:
            named = list(self._rules.headers)
            self._coverages.add_headers(named)
            self._learned = len(named)
        return any(name in request.META for name in self._coverages.environ_keys)

    # A request that has no key and, as far as is known, needs none: stages run unrecorded

    def _pass(self, request: HttpRequest) -> HttpResponseBase | Awaitable[HttpResponseBase]:
        setattr(request, _ATTRIBUTE, None)
        policy = self.engine.policy
        here = (Attempt(policy), self.engine) if self._off or request.method in policy.methods else running.get()
        return self._apass_by(request, here) if self._awaits else self._pass_by(request, here)

    def _pass_by(self, request: HttpRequest, here: Running | None) -> HttpResponseBase:
        before = running.get()
        running.set(here)
        try:
            response: HttpResponseBase = self.get_response(request)
            late = self._exchange(request)
            return bind_stream(response) if late is None else late.conclude(response)
        except BaseException as error:
            late = self._exchange(request)
            if late is not None:
                late.abort(error)
            raise
        finally:
            running.set(before)

    async def _apass_by(self, request: HttpRequest, here: Running | None) -> HttpResponseBase:
        before = running.get()
        running.set(here)
        try:
            response: HttpResponseBase = await self.get_response(request)
            late = self._exchange(request)
            return bind_stream(response) if late is None else await late.aconclude(response)
        except BaseException as error:
            late = self._exchange(request)
            if late is not None:
                await late.aabort(error)
            raise
        finally:
            running.set(before)

    # The chain around the view

    def _run(self, request: HttpRequest, exchange: Exchange) -> HttpResponseBase:
        before = running.get()
        try:
            return exchange.conclude(self.get_response(request))
        except BaseException as error:
            exchange.abort(error)
            raise
        finally:
            running.set(before)

    async def _arun(self, request: HttpRequest, exchange: Exchange, keyed: bool) -> HttpResponseBase:
        before = running.get()
        requests = shutdown.enter(exchange) if keyed else None
        try:
            if requests is not None:
                return await self._run_to_its_end(request, exchange)
            return await exchange.aconclude(await self.get_response(request))
        except BaseException as error:
            await exchange.aabort(error)
            raise
        finally:
            if requests is not None:
                requests.discard(exchange)
            running.set(before)

    async def _run_to_its_end(self, request: HttpRequest, exchange: Exchange) -> HttpResponseBase:
        """Let a view in a thread finish after the client has left.

        Django cancels the chain when the client leaves, which ends an async view. A sync view would go on unseen in its
        thread: its attempt would count as failed, and a retry would run beside it. So the sync view is awaited, and its
        response is stored (L-05). The same holds for an async view while it calls sync code, and for a moment after
        that (L-09).
        """
        inner = _Inner(self.get_response(request))
        cancelled: asyncio.CancelledError | None = None
        patience: thread_calls.Patience | None = None
        while not inner.task.done():
            due = False
            try:
                await asyncio.wait((inner.task,), timeout=None if patience is None else thread_calls.LOOK)
                due = patience is not None and not patience.lasts()
            except asyncio.CancelledError as error:
                cancelled = error
                if patience is None:
                    patience = exchange.patience()
                    due = patience is None
            if due:
                patience = None
                inner.task.cancel()
        response = inner.result()
        if cancelled is None:
            return await exchange.aconclude(response)
        await exchange.aleave(response)
        raise cancelled

    # Hooks

    def _begin(
        self, request: HttpRequest, view: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> HttpResponseBase | None:
        self._found_view = True
        exchange = self._exchange(request) or self._late(request)
        if exchange is None:
            return None
        return exchange.begin(self._route(view, request), view)

    async def _abegin(
        self, request: HttpRequest, view: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> HttpResponseBase | None:
        self._found_view = True
        exchange = self._exchange(request) or self._late(request)
        if exchange is None:
            return None
        return await exchange.abegin(self._route(view, request), view)

    def _late(self, request: HttpRequest) -> Exchange | None:
        """The exchange of a request that passed before any view had a rule, since views may be loaded late."""
        if not self._rules.in_use or getattr(request, _ATTRIBUTE, request) is not None:
            return None
        exchange = Exchange(self.engine, request)
        setattr(request, _ATTRIBUTE, exchange)
        running.set(None)
        return exchange

    def process_exception(self, request: HttpRequest, exception: Exception) -> None:
        """Note that the view raised. Django handles the exception."""
        exchange = self._exchange(request)
        if exchange is not None:
            exchange.raised = True

    def _exchange(self, request: HttpRequest) -> Exchange | None:
        """The exchange that this middleware has begun; a second middleware in the list ignores it."""
        exchange: Exchange | None = getattr(request, _ATTRIBUTE, None)
        return exchange if exchange is not None and exchange.engine is self.engine else None

    def _route(self, view: Callable[..., Any], request: HttpRequest) -> Route | None:
        """How a view is covered, by the rules for the path, then the rules on the view; None if it is not covered."""
        return self._coverages.by(self._rules_for(view, request) if self._rules.in_use else ())

    def _rules_for(self, view: Callable[..., Any], request: HttpRequest) -> tuple[Rule, ...]:
        method = str(request.method)
        by_path = () if self._paths is None else self._paths.find(method, request.path_info)
        return by_path + layers.rules_on(view, method)


class _Inner:
    """Runs the inner chain in its own task, then copies its context variables back into the caller's context."""

    def __init__(self, chain: Awaitable[HttpResponseBase]) -> None:
        self._context = contextvars.copy_context()
        self.task = asyncio.ensure_future(self._await(chain))

    async def _await(self, chain: Awaitable[HttpResponseBase]) -> HttpResponseBase:
        try:
            return await chain
        finally:
            self._context = contextvars.copy_context()

    def result(self) -> HttpResponseBase:
        for variable, value in self._context.items():
            if variable.get(None) is not value:
                variable.set(value)
        return self.task.result()


def _is_protected(request: HttpRequest) -> bool:
    """Whether this middleware or an outer adapter of the library handles the request already."""
    scope: Any = getattr(request, "scope", None)
    outside = MARK in request.META if scope is None else asgi.MARK in scope
    return outside or hasattr(request, _ATTRIBUTE)


# The covered views of a project, and the middleware that protects its handler; for operators.

_LISTED_METHODS = ("POST", "PUT", "PATCH", "DELETE")


class CoveredViews(CoveredPaths):
    """The views that ``ROOT_URLCONF`` names."""

    def every(self) -> Iterator[Covered]:
        """See ``Covering``."""
        for path, view in _views(get_resolver().url_patterns, "/"):
            for method in _LISTED_METHODS:
                policy = self.policy_of(method, (*self.by_path(method, path), *layers.rules_on(view, method)))
                if policy is not None:
                    yield Covered(method, path, policy)

    def at(self, method: str, path: str) -> IdempotencyPolicy | None:
        """See ``Covering``. ``path`` may also be the template of a view, as ``every`` lists it."""
        if method in NEVER_COVERED:
            return None
        try:
            view: Any = resolve(path).func
        except Resolver404:
            view = next((view for named, view in _views(get_resolver().url_patterns, "/") if named == path), None)
        if view is None:
            return None
        return self.policy_of(method, (*self.by_path(method, path), *layers.rules_on(view, method)))


def _views(patterns: Iterable[URLPattern | URLResolver], path: str) -> Iterator[tuple[str, Any]]:
    for pattern in patterns:
        here = path + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from _views(pattern.url_patterns, here)
        else:
            yield here, pattern.callback


def protected_by(application: object) -> Protected | None:
    """What protects the WSGI or ASGI application of a project, by its settings."""
    if not isinstance(application, BaseHandler):
        return None
    engine, coverages, paths = configure(threads=True)
    return Protected(engine, CoveredViews(coverages, paths))


finders.append(protected_by)
