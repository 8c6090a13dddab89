"""Rows that are programs, since they need a process to themselves: heartbeats, memory, expensive bodies.

Each prints a line of JSON for each row: its name, its value and unit, and its limit if it has a target.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

from benchmarks import tables
from benchmarks.run import Results, Run

_AT_MOST = 300  # seconds for one program


def program(name: str) -> Callable[[Run], Results]:
    """The command line of ``benchmarks/<name>.py``."""

    def measure(run: Run) -> Results:
        command = [sys.executable, "-m", f"benchmarks.{name}", *(["--quick"] if run.quick else [])]
        ended = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=_AT_MOST, check=True)
        results: Results = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith("{")]
        print(table(name, results), flush=True)
        return results

    return measure


def table(name: str, results: Results) -> str:
    """A row in each line."""
    lines = [["row", "value", "unit", "target"]]
    lines += [[one["row"], tables.figure(one["value"]), one["unit"], tables.limit(one)] for one in results]
    return f"\n{name}\n{tables.indented(tables.aligned(lines).splitlines())}"
