"""Common mistakes with ``idem``, and the errors that report them before anything has run."""

from __future__ import annotations

import asyncio
import functools
import gc
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from open_idempotency import events, idem
from open_idempotency._core.attempt import Attempt
from open_idempotency._core.models import Response
from open_idempotency._core.settlement import Fate, abort, finish
from open_idempotency.exceptions import AlreadyCompleted, ConfigurationError, StageValueError
from open_idempotency.fastapi import IdempotencyMiddleware
from open_idempotency.flask import Idempotency
from tests.unit.builders import Listener
from tests.unit.stages.stage_client import KEY, Client, Counted


@pytest.fixture
def client() -> Client:
    """A client with its own backend."""
    return Client()


def charge(amount: int, key: str | None = None) -> str:
    """A call to a provider that accepts keys."""
    return f"{amount} with {key}"


def test_a_key_that_may_be_the_functions_is_asked_about(client: Client) -> None:
    """S-01: otherwise the provider would silently get no key."""
    with client.request(), pytest.raises(TypeError, match=r"key= is an argument of the stage.*functools\.partial"):
        idem.run("charge", charge, 500, key=idem.key_for("charge"))


def test_a_partial_function_has_its_own(client: Client) -> None:
    """S-01: with ``functools.partial`` both arguments reach the right place."""
    with client.request():
        assert idem.run("charge", functools.partial(charge, key="theirs"), 500, key="ours") == "500 with theirs"
        assert idem.stages[0].key == "ours"


def test_an_argument_that_is_not_given_needs_no_question(client: Client) -> None:
    """S-01: a function may have parameters of any name."""
    with client.request():
        assert idem.run("charge", charge, 500) == "500 with None"


@pytest.mark.anyio
async def test_it_is_asked_in_coroutines_too(client: Client) -> None:
    """S-08: the same error in the async verbs."""
    with client.request(), pytest.raises(TypeError, match="external= is an argument of the stage"):
        await idem.arun("charge", lambda external: None, external=True)


@pytest.mark.parametrize("result", ["a charge", None])
def test_what_a_function_returned_is_no_function(client: Client, result: Any) -> None:
    """S-01: its effect has happened outside of the stage by then."""
    with client.request(), pytest.raises(TypeError, match="pass the function and its arguments separately"):
        idem.run("charge", result)


@pytest.mark.anyio
async def test_a_coroutine_is_no_function(client: Client) -> None:
    """S-08: the coroutine is closed, so that Python does not warn about it."""
    with client.request(), pytest.raises(TypeError, match="pass the function and its arguments separately"):
        await idem.arun("charge", Counted().awaited())


def test_a_decorator_without_a_name_says_how_it_is_written() -> None:
    """S-01: the error shows the right form."""
    stage: Any = idem.stage
    with pytest.raises(TypeError, match=r"@idem\.stage\('name'\)"):

        @stage
        def reserve() -> None: ...


def test_a_class_as_transaction_is_refused(client: Client) -> None:
    """S-05: it would be called, and make a transaction that nobody commits."""

    class Session:
        """A session class of an application."""

    with client.request(), pytest.raises(ConfigurationError, match="tx= is the class Session"):
        idem.stage("order", tx=Session)(Counted().__call__)()


@pytest.mark.parametrize("form", [lambda tx: idem.stage("order", tx=tx), lambda tx: idem.atomic(tx)])
def test_a_wrong_transaction_is_reported_without_a_key_too(client: Client, form: Callable[[Any], Any]) -> None:
    """S-05: a developer who tries without a key sees the error, and not only production."""
    with client.request(key=b""), pytest.raises(ConfigurationError, match="tx= takes a SQLAlchemy Session"):
        form(object()).__enter__()


def test_a_name_means_nothing_where_no_django_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """S-05: the error does not repeat the name, as it may be a URL."""
    from django.conf import settings

    from open_idempotency.ledger.transactions import transaction_of

    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
    monkeypatch.setattr(type(settings), "configured", False)
    with pytest.raises(ConfigurationError, match="Django is not set up") as caught:
        transaction_of("postgresql://user:secret@host/shop")
    assert "secret" not in str(caught.value)


def test_a_declared_type_that_cannot_be_kept_is_reported_with_its_stage(client: Client) -> None:
    """S-02a: before the call, and with a type to return instead."""
    reserve = Counted()
    with client.request(), pytest.raises(StageValueError, match=r"stage 'reserve': .* Counted .* return a text"):
        idem.run("reserve", reserve, returns=Counted)
    assert reserve.calls == 0


def test_a_backend_instead_of_the_application_is_reported() -> None:
    """Bad input: Flask's extension takes the application first."""
    wrong: Any = "sqlite:///idem.db"
    with pytest.raises(ConfigurationError, match=r"first argument is the Flask application.*backend="):
        Idempotency(wrong)


SUCCESS, REFUSAL = Response(201, [], b"paid"), Response(402, [], b"declined")


def finished(client: Client, attempt: Attempt, response: Response = SUCCESS) -> Any:
    """The fate or response of an attempt whose view has ended."""
    return client.engine.sync.run(finish(attempt, response))


def never_awaited() -> Any:
    """Python's own warning about a coroutine that is never awaited; it comes at the end of the attempt."""
    return pytest.warns(RuntimeWarning, match="never awaited")


@pytest.mark.anyio
@pytest.mark.parametrize("verb", ["arun", "asave_stage"])
async def test_a_success_whose_stage_was_not_awaited_is_not_stored(verb: str) -> None:
    """O-36, S-08: the effect has not happened, so the client gets a 500, and the next attempt may do it."""
    listener = Listener()
    client, effect = Client(on_event=listener), Counted()
    with client.request() as attempt:
        getattr(idem, verb)("charge", effect.awaited)
        with never_awaited():
            response = finished(client, attempt)
    assert (response.status, b"not-committed" in response.body, effect.calls) == (500, True, 0)
    assert [each.stage for each in listener.seen if isinstance(each, events.NotAwaited)] == ["charge"]
    with client.request() as again:
        assert again.lease is not None
        assert again.lease.attempt == 2


@pytest.mark.anyio
async def test_a_refusal_may_leave_a_stage_unawaited(client: Client) -> None:
    """O-36: a refusal does not claim that the effect has happened; Python warns."""
    with client.request() as attempt:
        idem.arun("charge", Counted().awaited)
        with never_awaited():
            assert finished(client, attempt, REFUSAL) is Fate.KEPT


@pytest.mark.anyio
async def test_a_view_that_raises_leaves_no_stage_behind(client: Client) -> None:
    """O-36: the coroutine is released when the attempt fails."""
    with client.request() as attempt:
        idem.arun("charge", Counted().awaited)
        with never_awaited():
            client.engine.sync.run(abort(attempt, RuntimeError()))
        assert attempt.unawaited == ("charge",)


@pytest.mark.anyio
async def test_without_a_key_python_warns_at_once(client: Client) -> None:
    """O-36: nothing would be stored, so nothing is noted."""
    with client.request(key=b""), never_awaited():
        idem.arun("charge", Counted().awaited)
        gc.collect()


async def _in_tasks(client: Client) -> None:
    with client.request() as attempt:
        await asyncio.gather(idem.arun("one", Counted().awaited), idem.arun("two", Counted().awaited))
        await asyncio.create_task(idem.arun("three", Counted().awaited))  # type: ignore[arg-type]  # it is a coroutine
        cancelled = asyncio.ensure_future(idem.arun("four", Counted().awaited))
        cancelled.cancel()
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        del cancelled
        closed: Any = idem.arun("five", Counted().awaited)
        closed.close()
        del closed
        late = asyncio.ensure_future(idem.arun("six", Counted().awaited))
        assert finished(client, attempt) is Fate.KEPT
        with pytest.raises(AlreadyCompleted):
            await late
    assert attempt.unawaited == ()


def test_stages_of_tasks_are_awaited(client: Client) -> None:
    """O-36: gathered, in a task, in a task that has not begun, cancelled before it began, and closed unawaited."""
    asyncio.run(_in_tasks(client))


@pytest.mark.anyio
async def test_an_endpoint_that_forgets_await_is_a_500_twice() -> None:
    """O-36: under a framework, whose endpoint has returned by then."""
    app, effect = FastAPI(), Counted()
    app.add_middleware(IdempotencyMiddleware, backend="memory://")

    @app.post("/charges")
    async def charge_here() -> str:
        idem.arun("charge", effect.awaited)
        return "paid"

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as sender:
        for _ in range(2):
            with never_awaited():
                response = await sender.post("/charges", headers={"Idempotency-Key": KEY.decode()})
            assert response.status_code == 500
            assert "before it had done the work" in response.json()["detail"]
    assert effect.calls == 0
