"""A backend that is never closed: an application that names it by a URL has no object to close."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parent.parent.parent
_SCRIPT = """
import asyncio, gc, sys
from open_idempotency import open_backend
from open_idempotency.backends.sqlite import AsyncSqliteBackend
from open_idempotency.conformance.support import claim_of

path, kind, ending = sys.argv[1:]
if kind == "asyncio":
    backend = AsyncSqliteBackend(path)
    asyncio.run(backend.claim(claim_of(b"a")))
else:
    backend = open_backend(f"{kind}:///{path}")
    if kind != "sqlite":
        backend.migrate()
    backend.claim(claim_of(b"a"))
if ending == "dropped":
    del backend
    gc.collect()
    print("dropped")
"""


@pytest.mark.parametrize("ending", ["dropped", "at exit"])
@pytest.mark.parametrize("kind", ["sqlite", "asyncio", "sqlalchemy+sqlite"])
def test_a_backend_that_nobody_closes_closes_its_files(kind: str, ending: str, tmp_path: Path) -> None:
    """B-11: when it is dropped, and at exit. Python 3.13 warns of an unclosed database."""
    command = [sys.executable, "-X", "dev", "-c", _SCRIPT, str(tmp_path / "records.db"), kind, ending]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["dropped"] * (ending == "dropped")
