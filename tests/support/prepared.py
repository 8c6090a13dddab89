"""Runs modules in processes of their own: forked from a process that has imported the frameworks before, or started.

To import FastAPI, Django and Flask takes longer than what most pages of the docs do with them. No adapter of this
library is imported before: whether it is loaded makes a difference. ``OI_TEST_PAGES=full`` also starts a new
interpreter for each module, which finds what a page forgets to import.
"""

from __future__ import annotations

import gc
import json
import os
import runpy
import select
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import IO, NamedTuple, cast

from tests.matrix import is_full

#: how a module gets its process
WAYS = ["started"] if not hasattr(os, "fork") else ["forked", "started"] if is_full("PAGES") else ["forked"]
#: third-party modules that many pages import
LIBRARIES = (
    "asyncio", "django.http", "django.test", "django.urls", "fastapi.testclient", "flask", "httpx", "open_idempotency",
    "open_idempotency.backends.sqlite", "psycopg", "redis.asyncio", "sqlalchemy.ext.asyncio",
    "starlette.applications", "werkzeug.test",
)  # fmt: skip
ROOT = Path(__file__).parent.parent.parent


class Ended(NamedTuple):
    """How a process has ended, and its output."""

    returncode: int
    stdout: str
    stderr: str


def environment() -> dict[str, str]:
    """The environment of a process that imports the tests from this folder."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}


class Prepared:
    """Runs modules, in one of ``WAYS``."""

    def __init__(self, way: str) -> None:
        self._forks = way == "forked"
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, module: str, arguments: list[str], folder: Path, seconds: float) -> Ended:
        """``python -W error -m module arguments`` in a folder. Raises ``TimeoutExpired`` after so many seconds."""
        if not self._forks:
            command = [sys.executable, "-W", "error", "-m", module, *arguments]
            done = subprocess.run(
                command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=seconds, check=False
            )
            return Ended(done.returncode, done.stdout, done.stderr)
        if self._process is None:
            command = [sys.executable, "-W", "error", "-m", __name__]
            self._process = subprocess.Popen(
                command, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment()
            )
        files = [folder / f".{name}-of-the-process" for name in ("stdout", "stderr")]
        order = {"module": module, "arguments": arguments, "folder": str(folder), "files": [str(f) for f in files]}
        cast("IO[bytes]", self._process.stdin).write(json.dumps(order).encode() + b"\n")
        pid = self._reply(self._process, seconds)
        try:
            code = self._reply(self._process, seconds)
        except TimeoutError:
            os.kill(pid, 9)
            self._reply(self._process, seconds)
            raise subprocess.TimeoutExpired([module, *arguments], seconds) from None
        return Ended(code, *(file.read_text(encoding="utf-8") for file in files))

    @staticmethod
    def _reply(process: subprocess.Popen[bytes], seconds: float) -> int:
        stdout = cast("IO[bytes]", process.stdout)
        if not select.select([stdout], [], [], seconds)[0]:
            raise TimeoutError
        line = stdout.readline()
        assert line, f"the process that forks others has ended: {process.wait(10)}"
        return int(line)

    def close(self) -> None:
        """End the process that forks."""
        if self._process is not None:
            with self._process:
                cast("IO[bytes]", self._process.stdin).close()
                self._process.wait(10)


def _await_order() -> dict[str, object] | None:
    """Fork for each order that is read; returns the order in the new process, and None in this one at the end."""
    for line in sys.stdin.buffer:
        pid = os.fork()
        if pid == 0:
            order: dict[str, object] = json.loads(line)
            return order
        os.write(1, b"%d\n" % pid)
        _, status = os.waitpid(pid, 0)
        os.write(1, b"%d\n" % os.waitstatus_to_exitcode(status))
    return None


def _carry_out(order: dict[str, object]) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    for number, file in enumerate(cast("list[str]", order["files"]), 1):
        os.dup2(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    os.chdir(cast("str", order["folder"]))
    module = cast("str", order["module"])
    sys.argv = [module, *cast("list[str]", order["arguments"])]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _main() -> None:
    for library in LIBRARIES:
        import_module(library)
    gc.collect()
    gc.freeze()  # so that the collector of a forked process does not touch, and thereby copy, all of this memory
    order = _await_order()
    if order is not None:
        _carry_out(order)


if __name__ == "__main__":
    _main()
