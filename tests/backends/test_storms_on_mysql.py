"""Duplicates of one key from many processes on MySQL or MariaDB, under its REPEATABLE READ: exactly one run.

They run where ``tests.mariadb_server`` has a server, since pip has neither.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import mariadb_server
from tests.backends import sql_databases
from tests.backends.django_orm import on_django
from tests.backends.scripts.storm_script import FORMS, THREADS

PROCESSES = 8
KEYS = 6
SOON = 200.0

_ROOT = Path(__file__).parent.parent.parent
_RUNS = "CREATE TABLE runs (id integer AUTO_INCREMENT PRIMARY KEY, name varchar(80), number varchar(80))"


@contextlib.contextmanager
def runs_table(alias: str) -> Iterator[Any]:
    """A cursor of a database that has an empty table of runs."""
    from django.db import connections

    with connections[alias].cursor() as cursor:
        cursor.execute("DROP TABLE IF EXISTS runs")
        cursor.execute(_RUNS)
        yield cursor


def storm(form: str, url: str, keys: list[str]) -> list[dict[str, Any]]:
    """The results of all processes."""
    command = [sys.executable, "-m", "tests.backends.scripts.storm_script", form, url, *keys]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=_ROOT)
        for _ in range(PROCESSES)
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        ends = []
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in processes:
            assert process.stdout is not None
            ends.append(json.loads(process.stdout.read()))
            assert process.wait(SOON) == 0
        return ends
    finally:
        for process in processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()


if mariadb_server.IN_USE:

    @pytest.mark.timeout(SOON)
    @pytest.mark.parametrize("form", FORMS)
    def test_of_a_storm_of_duplicates_one_runs(form: str, request: pytest.FixtureRequest) -> None:
        """B-01, S-06: each client gets its response, and no client sees a deadlock error."""
        with on_django.aliased(on_django.mysql(mariadb_server.url())) as alias, runs_table(alias) as cursor:
            from django.db import connections

            where = connections[alias].settings_dict
            url = f"mysql://{where['USER']}:{where['PASSWORD']}@{where['HOST']}:{where['PORT']}/{where['NAME']}"
            if form == "sqlalchemy":
                sql_databases.make_tables(url.replace("mysql:", "mysql+pymysql:"))
            keys = [secrets.token_hex(12) for _ in range(KEYS)]
            ends = storm(form, url, keys)
            cursor.execute("SELECT name, id FROM runs")
            rows = sorted((name, str(number)) for name, number in cursor.fetchall())
        assert [name for name, _ in rows] == sorted(keys)
        for key, number in rows:
            assert [end["bodies"][key] for end in ends] == [[number] * THREADS] * PROCESSES
        assert [end["others"] for end in ends] == [{}] * PROCESSES
