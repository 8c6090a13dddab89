"""The pytest plugin as a user has it: a test file, run by pytest in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

APP = """
from fastapi import FastAPI
from open_idempotency import idem
from open_idempotency.fastapi import IdempotencyMiddleware

app = FastAPI()
app.add_middleware(IdempotencyMiddleware, backend="redis://127.0.0.1:1/0")
mails = []

@app.post("/pay")
async def pay():
    return await idem.arun("mail", mails.append, "sent")
"""

TESTS = """
import pytest
from fastapi.testclient import TestClient
from shop import app, mails

def test_in_one_line(idempotency):
    idempotency.assert_idempotent(TestClient(app), "POST /pay", effects=mails, in_doubt=False)

def test_with_all_crashes(idempotency):
    idempotency.assert_idempotent(TestClient(app), "POST /pay", effects=mails)

def test_records_are_of_one_test(idempotency):
    assert idempotency.records == []
    TestClient(app).post("/pay", headers={"Idempotency-Key": "a-key-of-the-test-0001"})
    assert len(idempotency.records) == 1

def test_records_are_of_one_test_again(idempotency):
    assert idempotency.records == []
"""


def _pytest(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "open_idempotency.pytest_plugin", "-p", "no:cacheprovider"]
    return subprocess.run(
        [*command, "-p", "no:randomly", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "test_shop.py").write_text(TESTS)
    return tmp_path


def test_a_project_has_the_fixture(project: Path) -> None:
    """T-01: each test has a backend of its own, and a failure ends the report with its message."""
    done = _pytest(project, "-rf")
    assert "1 failed, 3 passed" in done.stdout, done.stdout + done.stderr
    assert "NotIdempotent: POST /pay is not idempotent: killed after the effect of stage 'mail'" in done.stdout
    assert "idem.key_for('mail')" in done.stdout
    assert "_scenarios.py" not in done.stdout  # the report shows the line of the test, and none of the kit's


def test_the_fixture_is_listed_with_what_it_is_for(project: Path) -> None:
    """T-01: ``pytest --fixtures`` lists it."""
    listed = _pytest(project, "--fixtures").stdout
    assert "idempotency -- " in listed
    assert "fresh backend in memory for every application that the test calls" in listed


def test_the_plugin_loads_nothing_until_a_test_takes_it(tmp_path: Path) -> None:
    """T-02: every project that has the package installed loads the plugin."""
    (tmp_path / "test_light.py").write_text(
        "import sys\n\ndef test_light():\n    assert 'open_idempotency.testing._kit' not in sys.modules\n"
        "    assert not {'django', 'flask', 'starlette', 'fastapi', 'redis'} & sys.modules.keys()\n"
    )
    done = _pytest(tmp_path)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_the_kit_needs_no_pytest_and_no_framework(tmp_path: Path) -> None:
    """T-02: it works with any test runner, and an application imports none of it."""
    program = (
        "import sys\nsys.modules['pytest'] = None\n"
        "import open_idempotency.asgi, open_idempotency.wsgi\n"
        "assert not any(name.startswith('open_idempotency.testing') for name in sys.modules)\n"
        "from open_idempotency.testing import Kit\n"
        "with Kit() as kit:\n    assert kit.records == []\n"
        "print(sorted({'django', 'flask', 'starlette', 'fastapi', 'httpx'} & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout == "[]\n", done.stderr
