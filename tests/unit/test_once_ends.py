"""How calls of ``Once`` end with their task, process and transaction, and which other processes have the records."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from open_idempotency import (
    ConfigurationError,
    LeaseLost,
    NotCommitted,
    Once,
    OutcomeUnknown,
    Status,
    drain,
    idem,
    ledger,
)
from open_idempotency.backend import Backend
from open_idempotency.backends.memory import MemoryBackend

PATIENCE = 60


def never(*_: Any, **__: Any) -> Any:
    """A function that must not be called."""
    raise AssertionError("carried out again")


def lose(backend: Backend) -> None:
    """Delete the records, as a flushed cache does."""
    for record in list(backend.scan()):
        backend.delete(record.record_id)


# The task


@pytest.mark.anyio
async def test_a_cancelled_call_has_failed_and_is_resumed() -> None:
    """N-27: on asyncio and on trio; the cancellation continues, and the stages are kept."""
    once, begun, stages = Once(MemoryBackend(), scope="s"), anyio.Event(), []

    async def work(forever: bool) -> str:
        await idem.arun("first", lambda: stages.append(1))
        if forever:
            begun.set()
            await anyio.sleep_forever()
        return "made"

    async with anyio.create_task_group() as tasks:

        async def call() -> None:
            await once.arun("k", work, True, payload=1)

        tasks.start_soon(call)
        await begun.wait()
        tasks.cancel_scope.cancel()

    assert (await once.astatus("k")).status is Status.FAILED
    assert await once.arun("k", work, False, payload=1) == "made"
    assert stages == [1]


@pytest.mark.anyio
async def test_a_cancelled_block_has_failed() -> None:
    """N-27: the block form."""
    once = Once(MemoryBackend(), scope="s")
    with anyio.move_on_after(0.05):
        async with once.begin("k", payload=1):
            await anyio.sleep_forever()
    assert (await once.astatus("k")).status is Status.FAILED


@pytest.mark.anyio
async def test_a_cancelled_call_waits_for_its_thread() -> None:
    """N-27, L-09: no other attempt runs beside it, and its result is recorded."""
    once, begun, may_end = Once(MemoryBackend(), scope="s"), threading.Event(), threading.Event()

    def in_thread() -> str:
        begun.set()
        may_end.wait(PATIENCE)
        return "made"

    async def work() -> str:
        return await anyio.to_thread.run_sync(in_thread)

    async with anyio.create_task_group() as tasks:

        async def call() -> None:
            await once.arun("k", work)

        tasks.start_soon(call)
        while not begun.is_set():
            await anyio.sleep(0.01)
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.1)
            assert (await once.astatus("k")).alive
        may_end.set()

    assert await once.arun("k", never, payload={}) == "made"


# The process


def test_a_call_is_given_up_when_its_process_ends() -> None:
    """N-26: the next call does not wait for its lease, and a call that continues has lost it."""
    once, begun, may_end = (
        Once(MemoryBackend(), scope="s", lease=600, max_run=600),
        threading.Event(),
        threading.Event(),
    )
    errors: list[BaseException] = []

    def work() -> None:
        begun.set()
        may_end.wait(PATIENCE)
        idem.save_stage("after", 1)

    def call() -> None:
        try:
            once.run("k", work, payload=1)
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    try:
        assert begun.wait(PATIENCE)
        assert drain() >= 1
        assert once.run("k", lambda: "made", payload=1) == "made"
    finally:
        may_end.set()
        thread.join()
    # It gets the result of the call that took over.
    assert errors == []
    assert once.status("k").attempt == 2


def test_after_a_drain_nobody_else_has_taken_over() -> None:
    """N-26."""
    once = Once(MemoryBackend(), scope="s")

    def work() -> str:
        drain()
        return "made"

    with pytest.raises(LeaseLost):
        once.run("k", work)
    assert once.status("k").status is Status.FAILED


FORKED = """
import os, sys
from open_idempotency import Once, idem
once = Once(sys.argv[1], scope="s")
assert once.run("before", lambda: "parent") == "parent"
pid = os.fork()
if not pid:
    assert once.run("before", lambda: "child") == "parent"
    assert once.run("in the child", lambda: idem.run("stage", lambda: "child")) == "child"
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert once.run("in the child", lambda: "parent") == "child"
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_child_calls_on_with_connections_of_its_own(tmp_path: Path) -> None:
    """N-26: the ``Once`` was made, and used, before the fork."""
    url = f"sqlite:///{tmp_path}/once.db"
    ended = subprocess.run(
        [sys.executable, "-c", FORKED, url], capture_output=True, text=True, timeout=PATIENCE, check=False
    )
    assert ended.returncode == 0, ended.stderr


def test_many_threads_carry_one_key_out_once() -> None:
    """N-26: one thread runs the function, and all get its result."""
    once, calls = Once(MemoryBackend(), scope="s"), []
    results: list[Any] = []

    def call() -> None:
        results.append(once.run("k", lambda: calls.append(1) or "made", payload=1, wait=PATIENCE))

    threads = [threading.Thread(target=call) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert (results, calls) == (["made"] * 20, [1])


def test_several_event_loops_use_one_once(tmp_path: Path) -> None:
    """N-26: one after another, as in a task that runs each of its coroutines with ``asyncio.run``."""
    import asyncio

    once = Once(f"sqlite:///{tmp_path}/once.db", scope="s")

    async def call() -> Any:
        try:
            return await once.arun("k", lambda: "made", payload=1)
        finally:
            await once.aclose()

    assert [asyncio.run(call()) for _ in range(2)] == ["made"] * 2


# Another process with records of its own

BESIDE = """
import logging, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from open_idempotency import Once
once = Once("memory://", scope=sys.argv[1])
once.run("k", lambda: 1)
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def beside(tmp_path: Path) -> Iterator[Any]:
    """Starts a process that uses a ``Once`` in memory, in this test's folder."""
    started: list[subprocess.Popen[str]] = []

    def start(scope: str, folder: Path = tmp_path) -> tuple[int, str]:
        process = subprocess.Popen(
            [sys.executable, "-c", BESIDE, scope], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        lines: list[str] = []
        while "ready\n" not in lines:
            lines.append(process.stdout.readline())
            assert lines[-1], "it has ended"
        return process.pid, "".join(lines)

    yield start
    for process in started:
        process.send_signal(signal.SIGKILL)
        process.communicate(timeout=PATIENCE)


@pytest.mark.skipif(sys.platform == "win32", reason="not known there")
def test_a_once_in_memory_reports_another_process_with_records_of_its_own(beside: Any, tmp_path: Path) -> None:
    """N-30: only for the same scope in the same folder."""
    other = tmp_path / "another application"
    other.mkdir()
    pid, alone = beside("invoices")
    _, elsewhere = beside("invoices", other)
    _, another_scope = beside("mails")
    _, both = beside("invoices")

    assert (alone, elsewhere, another_scope) == ("ready\n",) * 3
    assert f"the process with pid {pid} both use Once 'invoices'" in both or sys.platform != "linux"
    assert "redis://" in both


def test_a_once_on_shared_records_reports_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """N-30."""
    with caplog.at_level(logging.WARNING, "open_idempotency"):
        assert Once(f"sqlite:///{tmp_path}/once.db", scope="s").run("k", lambda: 1) == 1
    assert caplog.records == []


# The transaction


class Shop:
    """A SQLite database with the ledger's tables and a table of invoices, and records that may be lost."""

    def __init__(self, folder: Path, **fields: Any) -> None:
        self.path = folder / "shop.db"
        self.engine = create_engine(f"sqlite:///{self.path}")
        self.backend = MemoryBackend()
        self.once = Once(self.backend, scope="invoices", **fields)
        with self.engine.begin() as connection:
            for statement in (ledger.schema("sqlite") + "CREATE TABLE invoices (number integer PRIMARY KEY)").split(
                ";"
            ):
                connection.execute(text(statement or "SELECT 1"))

    @property
    def invoices(self) -> int:
        """The number of committed invoices."""
        with self.engine.begin() as connection:
            return int(connection.execute(text("SELECT count(*) FROM invoices")).scalar_one())

    def create(self, order: int, error: Exception | None = None, returned: Any = ...) -> Any:
        """Insert an invoice, and commit the result with it."""
        with Session(self.engine) as session, session.begin(), idem.atomic(session) as block:
            session.execute(text("INSERT INTO invoices DEFAULT VALUES"))
            result = block.respond({"order": order})
        if error is not None:
            raise error
        return result if returned is ... else returned

    def close(self) -> None:
        self.engine.dispose()


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    made = Shop(tmp_path)
    yield made
    made.close()


def test_a_committed_result_is_found_although_the_record_was_lost(shop: Shop) -> None:
    """N-13, S-06: a later call inserts no further row; afterwards the result is recorded again."""
    assert shop.once.run("k", shop.create, 7) == {"order": 7}
    lose(shop.backend)
    assert shop.once.run("k", shop.create, 7) == {"order": 7}
    assert shop.once.run("k", never, payload={"order": 7}) == {"order": 7}
    assert shop.invoices == 1


def test_a_committed_result_is_found_by_a_block(shop: Shop) -> None:
    """N-13: the block form."""
    for _ in range(2):
        with shop.once.begin("k", payload=7) as attempt:
            attempt.complete(shop.create(7))
        assert attempt.result == {"order": 7}
        lose(shop.backend)
    assert shop.invoices == 1


def test_an_error_behind_the_commit_leaves_the_committed_result(shop: Shop) -> None:
    """N-13, S-06b: the committed result is recorded."""
    with pytest.raises(ZeroDivisionError):
        shop.once.run("k", shop.create, 7, ZeroDivisionError(), payload=7)
    assert shop.once.run("k", never, payload=7) == {"order": 7}
    assert shop.invoices == 1


def test_a_function_returns_what_it_has_committed_or_nothing(shop: Shop) -> None:
    """N-13: another result is an error, and the committed result counts."""
    assert shop.once.run("nothing", shop.create, 7, returned=None) == {"order": 7}
    with pytest.raises(ConfigurationError, match=r"idem\.atomic"):
        shop.once.run("another", shop.create, 8, returned={"order": 9})
    assert shop.once.run("another", never, payload={"order": 8, "returned": {"order": 9}}) == {"order": 8}


def test_a_result_whose_transaction_is_open_is_not_kept(shop: Shop) -> None:
    """N-13, S-05."""
    session = Session(shop.engine)

    def leave_open(order: int) -> Any:
        session.begin()
        with idem.atomic(session) as block:
            session.execute(text("INSERT INTO invoices DEFAULT VALUES"))
            return block.respond({"order": order})

    try:
        with pytest.raises(NotCommitted, match="commit before it returns"):
            shop.once.run("k", leave_open, 7)
    finally:
        session.rollback()
        session.close()
    assert shop.once.run("k", shop.create, 7) == {"order": 7}
    assert shop.invoices == 1


def test_a_result_that_cannot_be_kept_rolls_its_transaction_back(shop: Shop) -> None:
    """N-13: the error is raised before the COMMIT."""
    from open_idempotency import StageValueError

    def wrong() -> Any:
        with Session(shop.engine) as session, session.begin(), idem.atomic(session) as block:
            session.execute(text("INSERT INTO invoices DEFAULT VALUES"))
            return block.respond(object())

    with pytest.raises(StageValueError):
        shop.once.run("k", wrong, payload=1)
    assert shop.invoices == 0


def test_a_lost_record_of_another_payload_is_refused_by_the_ledger(shop: Shop) -> None:
    """N-13: no record is left that would refuse the right payload."""
    from open_idempotency import KeyReused

    shop.once.run("k", shop.create, 7)
    lose(shop.backend)
    with pytest.raises(KeyReused):
        shop.once.run("k", shop.create, 8)
    assert shop.once.run("k", shop.create, 7) == {"order": 7}


def test_the_ledger_is_asked_before_a_further_attempt_is_refused(tmp_path: Path) -> None:
    """N-11, S-06b: ``ledger=``."""
    engine = create_engine(f"sqlite:///{tmp_path}/shop.db")
    shop = Shop(tmp_path, on_failed="reject", ledger=engine.begin)
    shop.once.run("k", shop.create, 7, payload=1)
    lose(shop.backend)
    with pytest.raises(ZeroDivisionError):
        shop.once.run("k", lambda: 1 / 0, payload=1)
    assert shop.once.run("k", never, payload=1) == {"order": 7}
    with pytest.raises(ZeroDivisionError):
        shop.once.run("other", lambda: 1 / 0, payload=1)
    with pytest.raises(OutcomeUnknown):
        shop.once.run("other", never, payload=1)
    shop.close()
    engine.dispose()


def test_a_committed_result_is_found_async(shop: Shop) -> None:
    """N-13: with an async session."""
    import asyncio

    async def main() -> list[Any]:
        engine = create_async_engine(f"sqlite+aiosqlite:///{shop.path}")

        async def create(order: int) -> Any:
            async with AsyncSession(engine) as session, session.begin(), idem.atomic(session) as block:
                await session.execute(text("INSERT INTO invoices DEFAULT VALUES"))
                return block.respond({"order": order})

        results = [await shop.once.arun("k", create, 7)]
        lose(shop.backend)
        results.append(await shop.once.arun("k", create, 7))
        await engine.dispose()
        return results

    assert asyncio.run(main()) == [{"order": 7}] * 2
    assert shop.invoices == 1
