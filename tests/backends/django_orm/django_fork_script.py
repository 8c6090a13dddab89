"""A separate process for the fork tests: ``django_fork_script.py SCENARIO FILE``, on Django's SQLite."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from open_idempotency import open_backend
from tests.backends.django_orm import on_django
from tests.backends.scripts import fork_script

SETTINGS = {"ENGINE": "django.db.backends.sqlite3", "CONN_MAX_AGE": None}


def no_file_inherited(url: str, path: str) -> None:
    """The child inherits no open database of the backend; parent and child both go on."""
    backend = open_backend(url)
    fork_script.work(backend, b"parent")

    def child() -> None:
        links = []
        for number in os.listdir("/proc/self/fd"):
            with suppress(FileNotFoundError):  # opened by the listing itself
                links.append(os.readlink(f"/proc/self/fd/{number}"))
        assert not [link for link in links if path in link], links
        fork_script.work(backend, b"child")

    fork_script.expect(fork_script.in_child(child))
    fork_script.work(backend, b"again")


def beside_threads(url: str, path: str) -> None:
    """Fork while other threads are calling the backend."""
    backend = open_backend(url)
    threads = [threading.Thread(target=fork_script.work, args=(backend, b"thread-%d" % each)) for each in range(4)]
    for thread in threads:
        thread.start()
    pid = fork_script.in_child(lambda: fork_script.work(backend, b"child"))
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    fork_script.expect(pid)
    fork_script.work(backend, b"parent")


if __name__ == "__main__":
    with on_django.aliased({**SETTINGS, "NAME": sys.argv[2]}) as alias:
        scenarios = {scenario.__name__: scenario for scenario in (no_file_inherited, beside_threads)}
        scenarios[sys.argv[1]](f"django://{alias}?timeout=20", sys.argv[2])
