"""Idempotency keys for FastAPI: Starlette's middleware, rules as dependencies, and the OpenAPI description.

``app.add_middleware(IdempotencyMiddleware, backend="sqlite:///idempotency.db", lease=30)`` on the ``FastAPI()``
application. Routes are matched as in Starlette; this module adds dependencies and OpenAPI.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from open_idempotency.exceptions import MissingExtra

try:
    import fastapi
except ModuleNotFoundError as error:
    if error.name != "fastapi":
        raise
    raise MissingExtra(
        "open_idempotency.fastapi needs the fastapi package: pip install 'open-idempotency[fastapi]'"
    ) from error

from open_idempotency import _openapi
from open_idempotency._routes.coverage import PathTable
from open_idempotency._starlette.survey import all_rules, expanded, is_ours
from open_idempotency.policy import IdempotencyPolicy, make_policy
from open_idempotency.rules import IdempotencyRule, combine, exempt, idempotent
from open_idempotency.starlette import IdempotencyMiddleware

if TYPE_CHECKING:
    from fastapi import FastAPI

__all__ = ["IdempotencyMiddleware", "IdempotencyRule", "document_idempotency", "exempt", "idempotent"]

del fastapi


def document_idempotency(app: FastAPI, policy: IdempotencyPolicy | None = None) -> None:
    """Let ``app.openapi()`` describe the header of the covered operations, and the library's own responses to them.

    Operations are covered by the ``IdempotencyMiddleware`` of this application, or by ``policy``, if the middleware
    wraps the application from outside. Without either, nothing is described. Call it once, before the description is
    first made; the middleware and routes may be added later. Since 0.1.
    """
    describe = app.openapi
    described: dict[str, Any] | None = None

    def openapi() -> dict[str, Any]:
        nonlocal described
        schema = describe()
        # FastAPI caches its schema, and makes another one when there are new routes.
        if schema is not described:
            _describe(schema, app, policy)
            described = schema
        return schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way of extending the description


def _describe(schema: dict[str, Any], app: FastAPI, policy: IdempotencyPolicy | None) -> None:
    own = _coverages_of(app) if policy is None else (policy, None)
    if own is None:
        return
    problem = {"$ref": f"#/components/schemas/{_openapi.SCHEMA_NAME}"}
    covered = False
    for operation, effective in _covered(schema, app, *own):
        covered = True
        _openapi.document(operation, effective, problem)
    if covered:
        schemas = schema.setdefault("components", {}).setdefault("schemas", {})
        schemas.setdefault(_openapi.SCHEMA_NAME, dict(_openapi.PROBLEM_SCHEMA))


def _coverages_of(app: FastAPI) -> tuple[IdempotencyPolicy, PathTable | None] | None:
    """Policy and path rules of the application's own middleware; if there are several, of the innermost."""
    for listed in reversed(app.user_middleware):
        if is_ours(listed.cls):
            # before Starlette 0.35: options
            fields: dict[str, Any] = dict(vars(listed).get("kwargs") or vars(listed).get("options", {}))
            fields.pop("backend", None)
            fields.pop("user", None)
            by_path = fields.pop("rules", None)
            return make_policy(fields.pop("policy", None), fields), PathTable(by_path) if by_path else None
    return None


def _covered(
    schema: dict[str, Any], app: FastAPI, policy: IdempotencyPolicy, by_path: PathTable | None
) -> Iterator[tuple[dict[str, Any], IdempotencyPolicy]]:
    """The covered operations, each with its own policy. A parameter in a path stands for any segment."""
    for method, route, operation in _operations(schema, app):
        farther = by_path.find(method, route.path_format) if by_path else ()
        rule = combine((*farther, *all_rules(route, method)))
        if not rule.exempt if rule is not None else policy.cover != "marked":
            effective = policy.replace(**rule.fields) if rule else policy
            if method in effective.methods:
                yield operation, effective


def _operations(schema: dict[str, Any], app: FastAPI) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """The described operations: method, route and description."""
    paths = schema.get("paths", {})
    # Of two routes with one path and method FastAPI describes the later one.
    routes = {
        (route.path_format, m): route for route in expanded(app.routes) if _is_shown(route) for m in route.methods
    }
    for (path, method), route in routes.items():
        operation = paths.get(path, {}).get(method.lower())
        if operation is not None:
            yield method, route, operation


def _is_shown(route: Any) -> bool:
    """Whether a route is one of FastAPI's own and is part of the description."""
    return bool(getattr(route, "dependant", None) and route.include_in_schema and route.methods)
