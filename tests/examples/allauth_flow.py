"""A project with django-allauth's headless API behind the middleware, which registers a user and logs in.

It runs as a program, since a process has one Django project. The argument is a file with the hook ``store_next_steps``,
or ``-`` for none. It prints the results as JSON.
"""

from __future__ import annotations

import json
import re
import runpy
import sys
from typing import Any

import django
from django.conf import settings
from django.urls import include, path

KEY = "8e03978e-40d5-43e8-bc93-6894a57f93"
PASSWORD = "correct-horse-battery"
_PAGES = ("account_signup", "account_reset_password", "account_reset_password_from_key")


def configure(hook: str) -> None:
    """Set Django up; ``hook`` is the path of a file, or ``-``."""
    store = {} if hook == "-" else {"IDEMPOTENCY_STORE": runpy.run_path(hook)["store_next_steps"]}
    settings.configure(
        SECRET_KEY="only for this test",
        ALLOWED_HOSTS=["testserver"],
        ROOT_URLCONF=__name__,
        USE_TZ=True,
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        PASSWORD_HASHERS=["django.contrib.auth.hashers.MD5PasswordHasher"],
        EMAIL_BACKEND="django.core.mail.backends.locmem.EmailBackend",
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.messages",
            "django.contrib.sessions",
            "open_idempotency.django",
            "allauth",
            "allauth.account",
            "allauth.headless",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
            "django.contrib.messages.middleware.MessageMiddleware",
            "open_idempotency.django.IdempotencyMiddleware",
            "allauth.account.middleware.AccountMiddleware",
        ],
        TEMPLATES=[{"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}],
        AUTHENTICATION_BACKENDS=["allauth.account.auth_backends.AuthenticationBackend"],
        ACCOUNT_EMAIL_VERIFICATION="mandatory",
        ACCOUNT_EMAIL_VERIFICATION_BY_CODE_ENABLED=True,
        ACCOUNT_LOGIN_BY_CODE_ENABLED=True,
        ACCOUNT_LOGIN_METHODS={"email"},
        ACCOUNT_SIGNUP_FIELDS=["email*", "password1*"],
        ACCOUNT_RATE_LIMITS=False,
        HEADLESS_ONLY=True,
        HEADLESS_FRONTEND_URLS=dict.fromkeys(_PAGES, "https://app.example"),
        IDEMPOTENCY_BACKEND="memory://",
        **store,
    )
    django.setup()
    urlpatterns.append(path("_allauth/", include("allauth.headless.urls")))


#: this module is the URLconf, as ``__main__``; filled after Django's setup
urlpatterns: list[Any] = []


class Flow:
    """Sends each request twice with one key, like a client that lost the first response."""

    def __init__(self) -> None:
        from django.core import mail
        from django.test import Client

        self._outbox = mail.outbox
        self._new_client = Client
        self.steps: dict[str, Any] = {}

    def step(self, name: str, where: str, body: dict[str, str], token: str = "") -> dict[str, Any]:
        """Record both responses, and the number of e-mails. Returns the body of the first response."""
        before = len(self._outbox)
        tries = [self._send(name, where, body, token) for _ in range(2)]
        self.steps[name] = {
            "statuses": [each.status_code for each in tries],
            "replayed": ["Idempotent-Replayed" in each for each in tries],
            "same": tries[0].content == tries[1].content,
            "mails": len(self._outbox) - before,
        }
        return dict(json.loads(tries[0].content))

    def code(self) -> str:
        """The code in the last e-mail."""
        found = re.search(r"^([A-Z0-9]{3,}(?:-[A-Z0-9]{3,})?)$", str(self._outbox[-1].body), re.MULTILINE)
        assert found is not None, self._outbox[-1].body
        return found.group(1)

    def _send(self, name: str, where: str, body: dict[str, str], token: str) -> Any:
        headers = {
            "Idempotency-Key": f"{KEY}-{name.replace(' ', '-')}",
            **({"X-Session-Token": token} if token else {}),
        }
        # A new client each time: the first response was lost, and its cookies with it.
        client, api = self._new_client(), "browser" if name.startswith("browser") else "app"
        target = f"/_allauth/{api}/v1/{where}"
        return client.post(target, json.dumps(body), content_type="application/json", headers=headers)


def run() -> dict[str, Any]:
    """Register, verify the address, log in by a code and by a password, and send a request that needs a login."""
    from django.contrib.auth import get_user_model
    from django.core import mail
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    mail.outbox = []
    flow, account = Flow(), {"email": "ann@example.com", "password": PASSWORD}
    registered = flow.step("signup", "auth/signup", account)
    if not hasattr(settings, "IDEMPOTENCY_STORE"):  # the code is lost in the second e-mail
        return {"steps": flow.steps}
    flow.step("verify", "auth/email/verify", {"key": flow.code()}, registered["meta"]["session_token"])
    asked = flow.step("code", "auth/code/request", {"email": account["email"]})
    flow.step("confirm", "auth/code/confirm", {"code": flow.code()}, asked["meta"]["session_token"])
    flow.step("login", "auth/login", account)
    flow.step("wrong", "auth/login", {**account, "password": "wrong-password"})
    flow.step("refused", "account/password/change", {"new_password": "another-horse-battery"})
    flow.step("browser signup", "auth/signup", {**account, "email": "ben@example.com"})
    return {"steps": flow.steps, "users": get_user_model().objects.count()}


if __name__ == "__main__":
    configure(sys.argv[1])
    sys.stdout.write(json.dumps(run()))
