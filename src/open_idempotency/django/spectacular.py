"""The OpenAPI description of covered views, for drf-spectacular; no other module imports this one.

``REST_FRAMEWORK = {"DEFAULT_SCHEMA_CLASS": "open_idempotency.django.spectacular.AutoSchema"}``; or
``IdempotencySchema`` before a project's own schema class. It adds nothing if the middleware is not listed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from django.conf import settings
from django.utils.module_loading import import_string

from open_idempotency._openapi import PROBLEM_SCHEMA, SCHEMA_NAME, document
from open_idempotency._routes.coverage import PathTable
from open_idempotency.django.conf import read_settings
from open_idempotency.django.middleware import IdempotencyMiddleware
from open_idempotency.exceptions import MissingExtra
from open_idempotency.policy import IdempotencyPolicy, make_policy
from open_idempotency.rules import Rule, combine, rules_on

try:
    from drf_spectacular import openapi
    from drf_spectacular.generators import EndpointEnumerator
    from drf_spectacular.plumbing import ComponentRegistry, ResolvedComponent
except ModuleNotFoundError as error:
    if (error.name or "").partition(".")[0] not in ("drf_spectacular", "rest_framework"):
        raise
    raise MissingExtra(
        "open_idempotency.django.spectacular needs drf-spectacular: pip install drf-spectacular"
    ) from error

__all__ = ["AutoSchema", "IdempotencySchema"]

Callbacks = dict[tuple[str, str], Callable[..., Any]]

# drf-spectacular makes one registry for each description.
_callbacks: WeakKeyDictionary[ComponentRegistry, Callbacks] = WeakKeyDictionary()


class IdempotencySchema(openapi.AutoSchema):
    """Adds the header, and the responses of the library, to covered operations; a mixin. Since 0.1."""

    def get_operation(
        self, path: str, path_regex: str, path_prefix: str, method: str, registry: ComponentRegistry
    ) -> dict[str, Any] | None:
        """The operation as the next schema class describes it, with the additions of the middleware.

        Raises ``ConfigurationError`` for wrong settings.
        """
        operation: dict[str, Any] | None = super().get_operation(path, path_regex, path_prefix, method, registry)
        policy = None
        if operation is not None:
            policy = _policy_for(path, method, self._find_rules(path_regex, method, registry))
        if operation is not None and policy is not None and method.upper() in policy.methods:
            document(operation, policy, _problem(registry))
        return operation

    def _find_rules(self, path_regex: str, method: str, registry: ComponentRegistry) -> tuple[Rule, ...]:
        """The rules on the URL's callback; without one, those on the view's class."""
        view = self.view  # read first: enumerating the URLs removes it from a schema object that views share
        callback = _callback(path_regex, method, registry)
        return rules_on(callback or type(view), method, getattr(view, "action_map", None))


class AutoSchema(IdempotencySchema):
    """drf-spectacular's schema class with idempotency keys described. Since 0.1."""


def _policy_for(path: str, method: str, on_view: tuple[Rule, ...]) -> IdempotencyPolicy | None:
    """The policy of a view at a path, with the rules on it; None if it is not covered, or nothing is protected."""
    if not any(_is_ours(each) for each in settings.MIDDLEWARE):
        return None
    fields = read_settings()
    fields.pop("backend", None)
    by_path = PathTable(fields.pop("rules", None) or {}).find(method.upper(), path)
    policy = make_policy(fields.pop("policy", None), fields)
    rule = combine((*by_path, *on_view))
    if not policy.enabled or (policy.cover == "marked" if rule is None else rule.exempt):
        return None
    return policy if rule is None else policy.replace(**rule.fields)


def _is_ours(path: str) -> bool:
    found = import_string(path)
    return isinstance(found, type) and issubclass(found, IdempotencyMiddleware)


def _callback(path_regex: str, method: str, registry: ComponentRegistry) -> Callable[..., Any] | None:
    """The callback of a URL, made by ``as_view()`` or ``@api_view``, which can be marked."""
    if registry not in _callbacks:
        endpoints = EndpointEnumerator().get_api_endpoints()  # type: ignore[no-untyped-call]  # drf-spectacular's
        _callbacks[registry] = {(regex, verb): callback for _, regex, verb, callback in endpoints}
    return _callbacks[registry].get((path_regex, method))


def _problem(registry: ComponentRegistry) -> dict[str, Any]:
    component = ResolvedComponent(  # type: ignore[no-untyped-call]  # drf-spectacular's
        name=SCHEMA_NAME, type=ResolvedComponent.SCHEMA, object=SCHEMA_NAME, schema=dict(PROBLEM_SCHEMA)
    )
    registry.register_on_missing(component)
    ref: dict[str, Any] = component.ref
    return ref
