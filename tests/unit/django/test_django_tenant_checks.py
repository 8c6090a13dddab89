"""Django's system check of tenants: W006, where nothing distinguishes the callers of two tenants."""

from __future__ import annotations

import random
import sys
import threading
from collections.abc import Sequence
from contextvars import ContextVar
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from asgiref.local import Local
from django.core.checks import CheckMessage, run_checks
from django.http import HttpRequest, HttpResponse
from django.test import override_settings

from open_idempotency import IdempotencyPolicy
from tests.django_project.calls import OURS, project
from tests.django_project.settings import INSTALLED_APPS

here = threading.local()
task: ContextVar[str | None] = ContextVar("task", default=None)
request_state = Local()


def _view(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


def _found(**options: Any) -> Sequence[CheckMessage]:
    with project(_view, **options):
        return [message for message in run_checks() if message.id == "open_idempotency.W006"]


class Replicas:
    """A router that reads from any replica, and writes to the primary."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return random.choice(["first", "second"])

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "primary"


class UsersApart:
    """A router that keeps users in a database of their own, by the model alone."""

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return "users" if model._meta.app_label == "auth" else None


class OfTenant:
    """A router with a database for each tenant, which has its users in it."""

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return getattr(here, "database", None)


def _current() -> str:
    database = task.get()
    if database is None:
        raise LookupError("no tenant outside of a request")
    return database


class SharedUsers:
    """A router with a database for each tenant, and the same users for all tenants."""

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return "default" if model._meta.app_label == "auth" else getattr(here, "database", None)


class SharedUsersByTask(SharedUsers):
    """``SharedUsers`` with a function of the project that returns the tenant."""

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return "default" if model._meta.app_label == "auth" else _current()


class SharedUsersByRequest(SharedUsers):
    """``SharedUsers`` with the tenant in an attribute of the router."""

    def __init__(self) -> None:
        self.state = request_state

    def db_for_write(self, model: Any, **hints: Any) -> str | None:
        return "default" if model._meta.app_label == "auth" else getattr(self.state, "database", None)


class OnlyMigrates:
    """A router of a package that separates schemas; it chooses no database."""

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return None


@pytest.mark.parametrize("router", [Replicas, UsersApart, OnlyMigrates])
def test_a_router_that_chooses_by_the_model_alone_separates_nobody(router: type) -> None:
    """O-23: a project with read replicas has no tenants, so it gets no warning."""
    assert _found(DATABASE_ROUTERS=[router()]) == []


def test_users_who_are_kept_with_their_tenant_need_nothing() -> None:
    """O-16, O-23: the database that a user would be written to is part of the caller."""
    assert _found(DATABASE_ROUTERS=[OfTenant()]) == []


@pytest.mark.parametrize("router", [SharedUsers, SharedUsersByTask, SharedUsersByRequest])
def test_databases_by_request_with_users_shared_by_all_are_warned_of(router: type) -> None:
    """O-23: one user of two tenants would be one caller; the message names the router and the cure."""
    (message,) = _found(DATABASE_ROUTERS=[Replicas(), router()])
    assert f"{__name__}.{router.__name__}" in message.msg
    assert "IDEMPOTENCY_SCOPE" in str(message.hint)


class SetsTenant:
    """A middleware that sets ``request.tenant``, as packages for tenants do."""

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        request.tenant = request.headers["X-Tenant"]
        return self.get_response(request)


class InheritsTenant(SetsTenant):
    """A project's own subclass of such a middleware."""


def sets_tenant(get_response: Any) -> Any:
    """The same middleware as a function."""

    def middleware(request: Any) -> Any:
        setattr(request, "tenant", request.headers["X-Tenant"])  # noqa: B010 (one of the ways to write it)
        return get_response(request)

    return middleware


def reads_tenant(get_response: Any) -> Any:
    """A middleware that reads a user's tenant, and does not change the request."""

    def middleware(request: Any) -> Any:
        here.database = request.user.tenant
        return get_response(request)

    return middleware


DISTINGUISHED: dict[str, dict[str, Any]] = {
    "scope": {"IDEMPOTENCY_SCOPE": lambda request: "tenant and user"},
    "scope_in_policy": {"IDEMPOTENCY_POLICY": IdempotencyPolicy(scope=lambda request: "tenant and user")},
    "scope_by_host": {"IDEMPOTENCY_SCOPE_BY_HOST": True},
    **{
        each.__name__: {"MIDDLEWARE": [OURS, f"{__name__}.{each.__name__}"]}
        for each in (SetsTenant, InheritsTenant, sets_tenant)
    },
}


@pytest.mark.parametrize("options", DISTINGUISHED.values(), ids=DISTINGUISHED)
def test_a_project_that_names_the_tenant_is_not_warned(options: dict[str, Any]) -> None:
    """O-23: the callers of two tenants differ, on whichever side the middleware is listed."""
    assert _found(DATABASE_ROUTERS=[SharedUsers()], **options) == []


def test_a_middleware_that_only_reads_a_tenant_does_not_name_it() -> None:
    """O-23: ``request.tenant`` has to be set."""
    assert len(_found(DATABASE_ROUTERS=[SharedUsers()], MIDDLEWARE=[f"{__name__}.reads_tenant", OURS])) == 1


@pytest.mark.parametrize("package", ["django_tenants", "tenant_schemas", "django_pgschemas", "django_multitenant"])
def test_a_package_for_tenants_without_a_tenant_in_the_request_is_warned_of(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """O-23: its application is installed, and neither a schema, nor ``request.tenant``, nor a scope says whose request
    it is.
    """
    module = ModuleType(package)
    module.__file__ = __file__
    monkeypatch.setitem(sys.modules, package, module)
    with override_settings(INSTALLED_APPS=[*INSTALLED_APPS, package]):
        (message,) = _found()
        assert package in message.msg
        assert _found(IDEMPOTENCY_SCOPE_BY_HOST=True) == []
        assert _found(MIDDLEWARE=[f"{__name__}.SetsTenant", OURS]) == []


def test_a_connection_with_a_schema_names_the_tenant(monkeypatch: pytest.MonkeyPatch) -> None:
    """O-16, O-23: the schema of the default connection is part of the caller."""
    from django.db import connection

    with override_settings(DATABASE_ROUTERS=[SharedUsers()]):
        monkeypatch.setattr(connection._connections[connection._alias], "schema_name", "first", raising=False)
        assert _found() == []


def test_wrong_settings_and_a_missing_middleware_are_left_to_their_own_checks() -> None:
    """E001 and W002 report them."""
    assert _found(DATABASE_ROUTERS=[SharedUsers()], IDEMPOTENCY_TTL=5) == []
    assert _found(DATABASE_ROUTERS=[SharedUsers()], MIDDLEWARE=[]) == []


def test_a_user_of_two_tenants_is_one_caller_where_the_check_warns() -> None:
    """O-23: this is the reason for the warning."""
    from django.contrib.auth.models import User

    from open_idempotency.django.identity import name_after

    request: Any = SimpleNamespace(user=User(pk=1))
    with override_settings(DATABASE_ROUTERS=[SharedUsers()]):
        here.database = "first"
        before = name_after(request, None)
        here.database = "second"
        assert name_after(request, None) == before == "1"
    del here.database
