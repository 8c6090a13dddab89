"""A project with the admin site, its tables, and members of the staff with chosen permissions."""

# ruff: noqa: E402 (Django has to be set up before what needs its settings is imported)
from __future__ import annotations

import secrets
from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from tests.django_project import set_up

set_up()

from django.contrib.auth.models import Permission, User
from django.core.management import call_command
from django.db import connections
from django.test import Client, override_settings
from django.urls import path

LIST = "/admin/open_idempotency/record/"
EVERY = ("view_record", "delete_record", "release_record", "resolve_record")
PROJECT: dict[str, Any] = {
    "INSTALLED_APPS": [
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "django.contrib.sessions",
        "django.contrib.staticfiles",
        "open_idempotency.django",
    ],
    "MIDDLEWARE": [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    "TEMPLATES": [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
    "IDEMPOTENCY_BACKEND": "django://default",
    "STATIC_URL": "/static/",
}


@contextmanager
def admin_site(*views: Any, **options: Any) -> Generator[None, None, None]:
    """The project, with its tables, and views at ``/0``, ``/1``, ...; ``options`` are further settings."""
    with override_settings(**{**PROJECT, **options}):
        site = import_module("django.contrib.admin").site
        others = [path(str(place), view) for place, view in enumerate(views)]
        urls = type("Urls", (), {"urlpatterns": [path("admin/", site.urls), *others]})
        with override_settings(ROOT_URLCONF=urls):
            call_command("migrate", verbosity=0, interactive=False, skip_checks=True)
            yield
            connections.close_all()


def staff(*permissions: str, password: str = "", **more: Any) -> User:
    """A new member of the staff with these permissions."""
    user = User.objects.create_user(f"user-{secrets.token_hex(4)}", is_staff=True, password=password, **more)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return user


def client_of(*permissions: str, csrf: bool = False, **more: Any) -> Any:
    """The browser of a new member of the staff, logged in. ``csrf``: forms need their token, as in production."""
    client: Any = Client(enforce_csrf_checks=csrf)
    client.force_login(staff(*permissions, **more))
    return client
