"""The endpoint of a served application, controlled by files, so that another process can control it and read its runs.

``FileScript`` is the side of the application, ``Lead`` the side of the scenarios. A run writes its begin and its end.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from benchmarks.interface import Reply

#: what the endpoint does: respond with 201, with 500, raise, or respond in three parts
Kind = Literal["respond", "fail", "raise", "stream"]
HOLD_SECONDS = 60.0
_POLL = 0.01


class FileScript:
    """Does what the file ``kind`` says, after the gate that the file ``gate`` names has opened."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def run(self) -> Reply:
        """See ``interface.Script``."""
        run = secrets.token_hex(4)
        self._note("begin", run)
        for _ in self._closed():
            time.sleep(_POLL)
        return self._end(run)

    async def run_async(self) -> Reply:
        """See ``interface.Script``."""
        run = secrets.token_hex(4)
        self._note("begin", run)
        try:
            for _ in self._closed():
                await asyncio.sleep(_POLL)
        except asyncio.CancelledError:
            self._note("cancelled", run)
            raise
        return self._end(run)

    def _closed(self) -> Iterator[None]:
        gate = self._folder / (self._folder / "gate").read_text()
        until = time.monotonic() + HOLD_SECONDS
        while not gate.exists() and time.monotonic() < until:
            yield

    def _end(self, run: str) -> Reply:
        kind = (self._folder / "kind").read_text()
        self._note("end", run)
        if kind == "raise":
            raise RuntimeError("the scenario lets the endpoint raise")
        headers = {"Content-Type": "application/json", "Location": f"/charges/{run}", "X-Charge": run}
        if kind == "fail":
            return Reply(500, headers, (b'{"error": "%s"}' % run.encode(),))
        if kind == "stream":
            return Reply(201, headers, (b'{"charge": "%s"' % run.encode(), b', "lines": [1, 2]', b"}"), streamed=True)
        return Reply(201, headers, (b'{"charge": "%s"}' % run.encode(),))

    def _note(self, event: str, run: str) -> None:
        file = os.open(self._folder / "runs", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(file, f"{event} {run}\n".encode())
        finally:
            os.close(file)


class Lead:
    """Controls the script in a folder, and reads its runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._gates = itertools.count(1)
        (folder / "runs").touch()
        self.let("respond")

    def let(self, kind: Kind) -> None:
        """Set what the endpoint does from now on."""
        (self._folder / "kind").write_text(kind)
        (self._folder / "gate").write_text("kind")  # a file that is always there

    def hold(self) -> str:
        """Hold requests from now on; returns the name of their gate."""
        gate = f"gate-{next(self._gates)}"
        (self._folder / "gate").write_text(gate)
        return gate

    def open(self, gate: str) -> None:
        """Release the requests at this gate, and hold no others."""
        (self._folder / gate).touch()
        (self._folder / "gate").write_text("kind")

    def count(self, event: Literal["begin", "end", "cancelled"]) -> int:
        """The number of runs that have written this."""
        lines = (self._folder / "runs").read_text().splitlines()
        return sum(line.startswith(f"{event} ") for line in lines)
