"""The covered views of a project, and the middleware that protects its handler; for operators."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from django.core.handlers.base import BaseHandler
from django.urls import Resolver404, URLPattern, URLResolver, get_resolver, resolve

from open_idempotency._engine.engine import Covered, Protected
from open_idempotency._routes.coverage import CoveredPaths
from open_idempotency.django import layers
from open_idempotency.django.conf import configure
from open_idempotency.policy import NEVER_COVERED, IdempotencyPolicy

_METHODS = ("POST", "PUT", "PATCH", "DELETE")


class CoveredViews(CoveredPaths):
    """The views that ``ROOT_URLCONF`` names."""

    def every(self) -> Iterator[Covered]:
        """See ``Covering``."""
        for path, view in _views(get_resolver().url_patterns, "/"):
            for method in _METHODS:
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
