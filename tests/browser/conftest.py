"""Fixtures: a browser and the built docs, made once for all tests here."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.docs.pages import ROOT
from tests.support.browser import Browser, BrowserMissing, chromium, serving


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """Chromium; a missing one is a failure."""
    try:
        with chromium() as started:
            yield started
    except BrowserMissing as missing:
        pytest.fail(str(missing))


@pytest.fixture(scope="session")
def built_docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the docs as ``tox -e docs`` builds them."""
    folder = tmp_path_factory.mktemp("docs") / "html"
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", ROOT / "docs", folder],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="session")
def docs_site(built_docs: Path) -> Iterator[str]:
    """The URL of the built docs."""
    with serving(built_docs) as url:
        yield url
