"""The matrix: every test of this folder that uses ``site`` runs on every adapter and every backend that supports it.

``OI_TEST_HTTP=full`` runs it on every pair of them (``tests.matrix``). On PostgreSQL each adapter runs on the version
that ``ON_POSTGRES_16`` says; in the full form on both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from open_idempotency import open_backend
from open_idempotency.backend import Backend
from tests.http.backends import close_held
from tests.http.behaviours import SCRIPTS, Behaviour
from tests.http.sites import Case, Site, served
from tests.http.variants import BACKENDS, CAPABILITIES, ON_POSTGRES_16, POSTGRES_VERSIONS
from tests.matrix import is_full, share_out, short_form

NewCase = Callable[..., Case]
Open = Callable[[str], Backend]

_POSTGRES = POSTGRES_VERSIONS if is_full("HTTP") else ("postgres",)
_BACKENDS = (*(name for name in BACKENDS if name != "postgres"), *_POSTGRES)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "needs(*capabilities): run on the adapters that have them")
    config.addinivalue_line("markers", "on_backends(*names): run on these backends only")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Generate only the cells that run, as there are three times as many."""
    if "adapter" in metafunc.fixturenames:
        cells = _cells(metafunc.definition)
        if not is_full("HTTP"):
            test = f"{metafunc.definition.path.name} {metafunc.function.__name__}"
            kept = short_form(test, cells)
            cells = [cell for cell in cells if cell in kept]
        metafunc.parametrize(("adapter", "backend_name"), cells, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of a test with many values keep some on each adapter, unless every cell was requested."""
    share_out(config, items, "http", "HTTP", "adapter", "backend_name")


def _cells(test: pytest.Item) -> list[tuple[str, str]]:
    """Each adapter that has the capabilities of the test, on each backend that the test is for."""
    needed = {capability for mark in test.iter_markers("needs") for capability in mark.args}
    allowed = [set(mark.args) for mark in test.iter_markers("on_backends")]
    return [
        (adapter, backend)
        for adapter, capabilities in CAPABILITIES.items()
        for backend in _BACKENDS
        if needed <= capabilities and all(_kind(backend) in names for names in allowed)
    ]


def _kind(backend_name: str) -> str:
    """The name of the backend without its version."""
    return backend_name.rstrip("0123456789")


@pytest.fixture(scope="session")
def started(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Site]]:
    """Sites by adapter, each started on first use."""
    sites: dict[str, Site] = {}
    with ExitStack() as stack:
        stack.callback(close_held)

        def site_of(adapter: str) -> Site:
            if adapter not in sites:
                folder: Path = tmp_path_factory.mktemp(adapter)
                sites[adapter] = stack.enter_context(served(adapter, folder))
            return sites[adapter]

        yield site_of


@pytest.fixture(scope="session")
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Open]:
    """Backends by name, each opened once and shared by all adapters."""
    backends: dict[str, Backend] = {}

    def backend_of(name: str) -> Backend:
        if name not in backends:
            url = "memory://"
            if name == "sqlite":
                url = f"sqlite:///{tmp_path_factory.mktemp('records')}/idempotency.db"
            if name == "redis":
                url = request.getfixturevalue("valkey_url")
            if name in POSTGRES_VERSIONS:
                url = request.getfixturevalue(name).url()
            backends[name] = open_backend(url)
        return backends[name]

    yield backend_of
    for backend in backends.values():
        backend.close()


@pytest.fixture
def site(adapter: str, started: Callable[[str], Site]) -> Site:
    """The server of this adapter."""
    return started(adapter)


@pytest.fixture
def new_case(site: Site, backend_name: str, opened: Open) -> Iterator[NewCase]:
    """``new_case(behaviour, variant)``: an endpoint with a key of its own."""
    known = set(SCRIPTS)
    opens = backend_name
    if backend_name == "postgres":
        opens = "postgres16" if site.adapter in ON_POSTGRES_16 else "postgres18"

    def make(behaviour: Behaviour, variant: str = "default") -> Case:
        built = site.app(backend_name, opened(opens), variant)
        return Case(site, f"{backend_name}/{variant}", built, behaviour)

    yield make
    site.client.cookies.clear()
    for name in set(SCRIPTS) - known:
        del SCRIPTS[name]
