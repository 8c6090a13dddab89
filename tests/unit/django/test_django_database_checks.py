"""System checks of the ``django://`` backend: limits of its database are reported when the project starts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import CheckMessage, run_checks
from django.db import router
from django.http import HttpRequest, HttpResponse
from django.test import override_settings

from open_idempotency.exceptions import ConfigurationError
from tests.backends.django_orm import on_django
from tests.django_project.calls import project

SQLITE = "django.db.backends.sqlite3"


def _view(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


def _found(backend: Any, **options: Any) -> Sequence[CheckMessage]:
    with project(_view, IDEMPOTENCY_BACKEND=backend, **options):
        return [message for message in run_checks() if (message.id or "").startswith("open_idempotency.")]


def test_a_file_of_its_own_has_nothing_to_report(tmp_path: Path) -> None:
    """The check does not connect either."""
    with on_django.aliased(on_django.sqlite(tmp_path / "missing"), migrated=False) as alias:
        assert _found(f"django://{alias}") == []


def test_an_unknown_alias_is_a_wrong_setting() -> None:
    """E001 names the setting and the aliases that exist."""
    (message,) = _found("django://nowhere")
    assert message.id == "open_idempotency.E001"
    assert "IDEMPOTENCY_BACKEND: DATABASES has no 'nowhere'" in message.msg


def test_without_the_application_no_middleware_is_made() -> None:
    """Checks of an application that is not installed do not run, so the middleware raises the error."""
    from open_idempotency.django import IdempotencyMiddleware

    with (
        project(_view, IDEMPOTENCY_BACKEND="django://default"),
        override_settings(INSTALLED_APPS=["django.contrib.auth", "django.contrib.contenttypes"]),
        pytest.raises(ConfigurationError, match=r'IDEMPOTENCY_BACKEND: .* "open_idempotency.django" in INSTALLED_APPS'),
    ):
        IdempotencyMiddleware(_view)


@pytest.mark.parametrize("listed", [True, False])
def test_a_middleware_whose_application_is_not_installed_says_so(
    listed: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """O-28: without the application ``manage.py check`` runs no check, and would report no error."""
    from open_idempotency.django import IdempotencyMiddleware

    apps = ["django.contrib.auth", "django.contrib.contenttypes", *(["open_idempotency.django"] if listed else [])]
    with project(_view), override_settings(INSTALLED_APPS=apps), caplog.at_level("WARNING", "open_idempotency"):
        IdempotencyMiddleware(_view)
    said = [each.getMessage() for each in caplog.records if "INSTALLED_APPS" in each.getMessage()]
    assert len(said) == (0 if listed else 1)


class Elsewhere:
    """A router that allows no migration of the library's tables."""

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return False if app_label == "open_idempotency" else None


def test_a_router_that_keeps_the_tables_out_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """E004: no migration would ever create them."""
    monkeypatch.setattr(router, "routers", [Elsewhere()])
    with on_django.aliased(on_django.sqlite(tmp_path), migrated=False) as alias:
        (message,) = _found(f"django://{alias}")
    assert message.id == "open_idempotency.E004"
    assert alias in message.msg


@pytest.mark.parametrize("name", [":memory:", "file:x?mode=memory&cache=shared", "file:x?mode=memory"])
def test_a_database_in_memory_is_a_warning(name: str) -> None:
    """W004: no other process shares it."""
    with on_django.aliased({"ENGINE": SQLITE, "NAME": name}, migrated=False) as alias:
        assert [message.id for message in _found(f"django://{alias}")] == ["open_idempotency.W004"]


def test_one_writer_and_long_transactions_are_a_warning(tmp_path: Path) -> None:
    """W005: a view that has written keeps its own stages from being recorded."""
    with on_django.aliased(on_django.sqlite(tmp_path, ATOMIC_REQUESTS=True), migrated=False) as alias:
        (message,) = _found(f"django://{alias}")
        assert message.id == "open_idempotency.W005"
        assert _found("memory://") == []
