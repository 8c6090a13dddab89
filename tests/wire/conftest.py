"""The matrix: each test that uses ``served`` runs on every server and every adapter that supports it.

``OI_TEST_WIRE=full`` runs it on every pair of them (``tests.matrix``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.matrix import apart_from, below, thin_out
from tests.wire.case import Case
from tests.wire.kinds import SERVED, lacking
from tests.wire.native import FILE_BODY
from tests.wire.servers import Server

NewCase = Callable[..., Case]
Running = Callable[[str], Server]
StartServer = Callable[..., Server]

_LACKING = pytest.StashKey[set[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "wire_needs(*capabilities): run on the servers and adapters that have them")
    config.stash[_LACKING] = set()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "served" in metafunc.fixturenames:
        metafunc.parametrize("served", SERVED, scope="session")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect what a server or an adapter cannot do, and what only the full form runs."""
    reasons = {item: _reasons(item) for item in below("wire", items)}
    out = [item for item in reasons if reasons[item]]
    if out:
        items[:] = [item for item in items if not reasons.get(item)]
        config.hook.pytest_deselected(items=out)
        config.stash[_LACKING].update(reason for item in out for reason in reasons[item])
    thin_out(config, items, "wire", "WIRE", _cell)


def _cell(item: pytest.Item) -> tuple[str, str, str] | None:
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    if params.get("served") not in SERVED:
        return None
    kind, _, adapter = params["served"].partition(":")
    return kind, adapter, f"{item.path.name} {apart_from(item, 'served')}"


def pytest_report_collectionfinish(config: pytest.Config) -> list[str]:
    """Print the reasons, so that no pair of server and test is missing silently."""
    return [f"deselected on the wire: {reason}" for reason in sorted(config.stash[_LACKING])]


def _reasons(item: pytest.Item) -> list[str]:
    params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    needed = {capability for mark in item.iter_markers("wire_needs") for capability in mark.args}
    return lacking(params["served"], needed) if "served" in params else []


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Servers by kind, each started when it is first asked for, and shared by all adapters."""
    servers: dict[str, Server] = {}
    with ExitStack() as stack:

        def server_of(kind: str) -> Server:
            if kind not in servers:
                servers[kind] = stack.enter_context(Server(kind, _folder(tmp_path_factory, kind)))
            return servers[kind]

        yield server_of


@pytest.fixture
def new_case(served: str, running: Running) -> NewCase:
    """``new_case(script, variant=...)``: a new request to this server and adapter."""
    kind, _, adapter = served.partition(":")

    def make(script: str, **options: str) -> Case:
        return Case(running(kind), adapter, script, **options)

    return make


@pytest.fixture
def native_case(served: str, running: Running) -> NewCase:
    """``native_case(path, variant=...)``: the same, to an application without a framework."""
    kind, _, adapter = served.partition(":")

    def make(path: str, **options: str) -> Case:
        return Case(running(kind), f"native-{adapter}", "none", path=path, **options)

    return make


@pytest.fixture
def start_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[StartServer]:
    """``start_server(kind, *options, folder=None, **environment)``: a server for this test alone.

    ``folder``: the folder of another server, whose records and journals it shares.
    """
    with ExitStack() as stack:

        def start(kind: str, *options: str, folder: Path | None = None, **environment: str) -> Server:
            where = folder or _folder(tmp_path_factory, "own")
            return stack.enter_context(Server(kind, where, options, **environment))

        yield start


def _folder(factory: pytest.TempPathFactory, name: str) -> Path:
    folder = factory.mktemp(name)
    (folder / "file.bin").write_bytes(FILE_BODY)
    return folder
