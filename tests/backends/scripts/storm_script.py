"""A separate process for the storm test: ``storm_script.py FORM URL KEY...``; each key is sent from some threads.

Prints JSON: for each key the final responses of its requests, and the number of responses other than 201 and 409.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from tests.proof.calls import call_wsgi
from tests.proof.traps import Trap

THREADS = 4
PATIENCE = 60.0
#: seconds for a backend's call, which waits for locks; enough for a busy machine
TIMEOUT = 8
LEASE = 120
#: the table in which each run inserts its key
RUNS = "INSERT INTO runs (name, number) VALUES (%s, %s)"


def with_sqlalchemy(url: str) -> Any:
    """Records through SQLAlchemy; the effect commits separately."""
    import pymysql

    from open_idempotency.wsgi import IdempotencyMiddleware

    where = urlsplit(url)

    def view(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        connection = pymysql.connect(
            host=where.hostname, port=where.port or 3306, user=where.username, password=where.password or "",
            database=where.path[1:], autocommit=True,
        )  # fmt: skip
        try:
            cursor = connection.cursor()
            cursor.execute(RUNS, (environ["HTTP_IDEMPOTENCY_KEY"], str(time.monotonic_ns())))
            number = cursor.lastrowid
        finally:
            connection.close()
        start_response("201 Created", [("Content-Type", "text/plain")])
        return [b"%d" % number]

    backend = f"sqlalchemy+{url.replace('mysql:', 'mysql+pymysql:')}?timeout={TIMEOUT}"
    return IdempotencyMiddleware(view, backend=backend, lease=LEASE, scope=lambda request: "storm")


def with_django(url: str) -> Any:
    """Records, rows and responses through Django, in one database."""
    import django
    import pymysql
    from django.conf import settings

    pymysql.install_as_MySQLdb()

    where = urlsplit(url)
    database = {
        "ENGINE": "django.db.backends.mysql", "NAME": where.path[1:], "USER": where.username,
        "PASSWORD": where.password or "", "HOST": where.hostname, "PORT": str(where.port or 3306),
    }  # fmt: skip
    settings.configure(
        SECRET_KEY="for tests only",
        ALLOWED_HOSTS=["*"],
        ROOT_URLCONF=__name__,
        INSTALLED_APPS=["open_idempotency.django"],
        MIDDLEWARE=["open_idempotency.django.IdempotencyMiddleware"],
        DATABASES={"default": database},
        IDEMPOTENCY_BACKEND=f"django://default?timeout={TIMEOUT}",
        IDEMPOTENCY_LEASE=LEASE,
        IDEMPOTENCY_SCOPE=lambda request: "storm",
        LOGGING={"version": 1, "disable_existing_loggers": False, "loggers": {"django": {"level": "CRITICAL"}}},
    )
    django.setup()
    from django.core.wsgi import get_wsgi_application
    from django.db import connection
    from django.http import HttpRequest, HttpResponse
    from django.urls import path

    from open_idempotency.django import idempotent

    @idempotent(atomic=True)
    def view(request: HttpRequest) -> HttpResponse:
        with connection.cursor() as cursor:
            cursor.execute(RUNS, (request.headers["Idempotency-Key"], str(time.monotonic_ns())))
            return HttpResponse(str(cursor.lastrowid), status=201, content_type="text/plain")

    urlpatterns[:] = [path("", view)]
    return get_wsgi_application()


FORMS: dict[str, Callable[[str], Any]] = {"sqlalchemy": with_sqlalchemy, "django": with_django}
urlpatterns: list[Any] = []


def served(app: Any, key: str) -> tuple[str, Counter[int]]:
    """The final response, and every other status before it."""
    others, deadline = Counter[int](), time.monotonic() + PATIENCE
    while True:
        status, body = call_wsgi(app, Trap(), key)
        if status == 201:
            return body.decode(), others
        others[status] += 1
        if time.monotonic() > deadline:
            return f"{status} {body!r}", others
        time.sleep(0.005)


def main() -> None:
    """Start when the input ends."""
    form, url, *keys = sys.argv[1:]
    app = FORMS[form](url)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.read()
    bodies: dict[str, list[str]] = {}
    others = Counter[int]()
    with ThreadPoolExecutor(THREADS) as threads:
        for key in keys:
            ends = list(threads.map(lambda _, key=key: served(app, key), range(THREADS)))
            bodies[key] = [body for body, _ in ends]
            for _, counted in ends:
                others.update(counted)
    del others[409]
    sys.stdout.write(json.dumps({"bodies": bodies, "others": others}) + "\n")


if __name__ == "__main__":
    main()
