"""Worker processes, and the source trees of the versions that they run."""

from __future__ import annotations

import hashlib
import io
import json
import os
import select
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
#: seconds; nothing that works waits for so long
PATIENCE = 60.0


class Died(Exception):
    """The worker ended without a response."""


class Worker:
    """A process of the version whose package is in ``tree``. Its block ends it by its pid."""

    def __init__(self, tree: Path, store: str, effects: Path, ledger: Path) -> None:
        command = [sys.executable, "-W", "ignore", str(HERE / "worker.py"), store, str(effects), str(ledger)]
        environment = {**os.environ, "PYTHONPATH": str(tree)}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, cwd=effects.parent
        )
        assert self._read() == "ready"

    def __enter__(self) -> Worker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait(PATIENCE)
        self._process.stdout.close()

    def ask(self, verb: str, **arguments: Any) -> Any:
        """The result of a command. Raises ``Died``."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([verb, arguments]).encode() + b"\n")
        self._process.stdin.flush()
        response = self._read()
        assert not (isinstance(response, dict) and "error" in response), response
        return response

    def post(self, path: str, key: str, **more: Any) -> dict[str, Any]:
        """The response to a request, whose key is derived from a name. Raises ``Died``."""
        key = hashlib.sha256(key.encode()).hexdigest()
        response: dict[str, Any] = self.ask("post", path=path, key=key, **more)
        return response

    def post_until_admitted(self, path: str, key: str, **more: Any) -> dict[str, Any]:
        """The response, repeated while an earlier attempt counts as running."""
        deadline = time.monotonic() + PATIENCE
        while (response := self.post(path, key, **more))["status"] in (409, 503) and "in-progress" in response["body"]:
            assert time.monotonic() < deadline, response
            time.sleep(0.1)
        return response

    def _read(self) -> Any:
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], PATIENCE)
        assert readable, "the worker says nothing"
        line = self._process.stdout.readline()
        if not line:
            raise Died(f"with {self._process.wait(PATIENCE)}")
        return json.loads(line)


Start = Callable[[], Worker]


def killed(start: Start, path: str, key: str, end: str, **more: Any) -> None:
    """Send the request to a new worker, which dies during it."""
    with start() as worker:
        try:
            response = worker.post(path, key, end=end, **more)
        except Died:
            return
    raise AssertionError(f"the worker did not die: {response}")


def tree_of(commit: str, folder: Path) -> Path:
    """The package at a commit, for ``PYTHONPATH``. Raises ``LookupError`` without the history."""
    archive = subprocess.run(["git", "archive", commit, "src"], cwd=ROOT, capture_output=True, check=False)
    if archive.returncode:
        raise LookupError(archive.stderr.decode(errors="replace").strip())
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(folder, filter="data") if sys.version_info >= (3, 12) else tar.extractall(folder)
    return folder / "src"


def effects_in(file: Path) -> list[str]:
    """The names of the effects that happened, in order."""
    return [line.split()[0] for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []
