"""Each way in which an endpoint can fail to be idempotent: the kit finds it, and says what to do."""

from __future__ import annotations

import itertools
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from fastapi import Depends, FastAPI, Request, Response
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient
from flask import Flask

from open_idempotency import flask, idem
from open_idempotency.fastapi import IdempotencyMiddleware
from open_idempotency.testing import Kit, KitError, NotIdempotent
from tests.unit.testing.bank import Bank

Endpoint = Callable[[], Awaitable[Any]]


@pytest.fixture
def bank() -> Bank:
    return Bank()


@pytest.fixture
def calls() -> list[str]:
    """The effects of a test's endpoint, without a provider that knows keys."""
    return []


def _client(endpoint: Any, **policy: Any) -> TestClient:
    app = FastAPI()
    app.add_middleware(IdempotencyMiddleware, backend="memory://", **policy)
    app.post("/pay")(endpoint)
    return TestClient(app)


def _said(kit: Kit, client: Any, **asked: Any) -> str:
    """The kit's message about an endpoint that is not idempotent."""
    with pytest.raises(NotIdempotent) as caught:
        kit.assert_idempotent(client, "POST /pay", **asked)
    return str(caught.value)


# Effects outside of stages


def test_an_effect_before_the_first_stage_is_found(idempotency: Kit, bank: Bank, calls: list[str]) -> None:
    """T-05: the attempt that resumes repeats it."""

    async def pay() -> Any:
        calls.append("mail")
        return await idem.arun("charge", bank.acharge, 1, idem.key_for("charge"))

    said = _said(idempotency, _client(pay), effects=calls)
    assert "killed before stage 'charge' began" in said
    assert "effects: 2 rows added; one request alone: 1 row added" in said
    assert "code before stage 'charge' has an effect and is in no stage" in said


def test_an_effect_between_two_stages_is_found(idempotency: Kit, bank: Bank, calls: list[str]) -> None:
    """T-05: the crash at the later stage repeats it."""

    async def pay() -> Any:
        charge = await idem.arun("charge", bank.acharge, 1, idem.key_for("charge"))
        calls.append("mail")
        await idem.asave_stage("mailed", True)
        return charge

    said = _said(idempotency, _client(pay), effects=calls)
    assert "killed before stage 'mailed' began" in said


def test_an_effect_behind_the_last_stage_is_found(idempotency: Kit, bank: Bank, calls: list[str]) -> None:
    """T-05: the crash before the response is recorded repeats it."""

    async def pay() -> Any:
        charge = await idem.arun("charge", bank.acharge, 1, idem.key_for("charge"))
        calls.append("mail")
        return charge

    said = _said(idempotency, _client(pay), effects=calls)
    assert "killed when the handler had run, before its response was recorded" in said
    assert "an effect after the last stage ('charge') is in no stage" in said


@pytest.mark.parametrize("effects", [1, 3])
def test_an_endpoint_without_stages_is_found(idempotency: Kit, calls: list[str], effects: int) -> None:
    """T-05: one effect is enough."""

    async def pay() -> Any:
        calls.extend(["mail"] * effects)
        return {"sent": effects}

    said = _said(idempotency, _client(pay), effects=calls)
    assert f"effects: {2 * effects} rows added" in said
    assert "Wrap it, as in idem.run('name', function, ...)" in said


def test_a_stage_whose_effect_nobody_recognises_is_found(idempotency: Kit, calls: list[str]) -> None:
    """T-06: the worker dies between the effect and its record."""

    async def pay() -> Any:
        return await idem.arun("charge", calls.append, "charge")

    client = _client(pay)
    said = _said(idempotency, client, effects=calls)
    assert "killed after the effect of stage 'charge', before the effect was recorded" in said
    assert "idem.key_for('charge')" in said
    assert "tx=" in said
    assert "in_doubt=False" in said


def test_a_window_that_is_acceptable_can_be_left_out(idempotency: Kit, calls: list[str]) -> None:
    """T-06: a test names it, and nothing else is left out with it."""

    async def pay() -> Any:
        return await idem.arun("charge", calls.append, "charge")

    idempotency.assert_idempotent(_client(pay), "POST /pay", effects=calls, in_doubt=False)


def test_a_stage_with_another_key_in_each_attempt_is_found(idempotency: Kit, calls: list[str]) -> None:
    """T-05: it is recorded, and never found again."""

    async def pay() -> Any:
        return await idem.arun("charge", calls.append, "charge", key=str(uuid.uuid4()))

    said = _said(idempotency, _client(pay), effects=calls, in_doubt=False)
    assert "killed when stage 'charge' was on record" in said
    assert "key= that is another one in each attempt" in said


# Effects outside of what is protected


def test_an_effect_in_a_middleware_is_found(idempotency: Kit, calls: list[str]) -> None:
    """T-05: it happens for the replay as well."""

    async def pay() -> Any:
        return {"paid": True}

    client = _client(pay)

    @client.app.middleware("http")
    async def count(request: Request, call_next: Any) -> Response:
        calls.append("counted")
        response: Response = await call_next(request)
        return response

    said = _said(idempotency, client, effects=calls)
    assert "is not idempotent: one after the other" in said
    assert "the view did not run again, so the effect is outside of what is protected" in said


def test_an_effect_in_a_dependency_is_found(idempotency: Kit, calls: list[str]) -> None:
    """T-05: dependencies run before the claim."""

    def count() -> None:
        calls.append("counted")

    async def pay(_: None = Depends(count)) -> Any:
        return {"paid": True}

    assert "in a dependency" in _said(idempotency, _client(pay), effects=calls)


def test_an_effect_in_a_before_request_function_of_flask_is_found(idempotency: Kit, calls: list[str]) -> None:
    """T-05: it happens for the replay as well."""
    app = Flask("shop")
    flask.Idempotency(app, "memory://")
    app.before_request(lambda: calls.append("counted"))
    app.post("/pay")(lambda: {"paid": True})
    assert "the view did not run again" in _said(idempotency, app.test_client(), effects=calls)


# Responses


def test_a_response_that_is_not_stored_is_found(idempotency: Kit, calls: list[str]) -> None:
    """T-05: the retry runs again."""

    async def pay() -> Any:
        calls.append("mail")
        idem.discard()
        return {"sent": True}

    said = _said(idempotency, _client(pay), effects=calls)
    assert "the first response was not stored, so the retry ran again" in said


def test_a_caller_who_is_another_one_each_time_is_found(idempotency: Kit, calls: list[str]) -> None:
    """T-05: the key stands for two requests."""
    numbers = itertools.count()

    async def pay() -> Any:
        calls.append("mail")
        return {"sent": True}

    client = _client(pay, scope=lambda request: f"caller-{next(numbers)}")
    said = _said(idempotency, client, effects=calls)
    assert "the two requests count as those of different callers" in said
    client = _client(pay, scope=lambda request: f"caller-{next(numbers)}")
    with pytest.raises(NotIdempotent, match=r"at once|one after the other"):
        idempotency.assert_idempotent(client, "POST /pay", crashes=False)


def test_a_fingerprint_that_is_another_one_each_time_is_found(idempotency: Kit) -> None:
    """T-05: the retry is refused with 422."""
    numbers = itertools.count()

    async def pay() -> Any:
        return {"sent": True}

    client = _client(pay, fingerprint=lambda request: str(next(numbers)).encode())
    said = _said(idempotency, client, crashes=False)
    assert "the status: 200, then 422" in said
    assert "the two requests have different fingerprints" in said


def test_a_response_that_each_attempt_makes_anew_is_found(idempotency: Kit, bank: Bank) -> None:
    """T-07: such as an id that is generated outside of a stage."""

    async def pay() -> Any:
        charge = await idem.arun("charge", bank.acharge, 1, idem.key_for("charge"))
        return {"receipt": str(uuid.uuid4()), "charge": charge}

    client = _client(pay)
    said = _said(idempotency, client, effects=bank.count)
    assert "the next attempt made another response" in said
    assert "the body, receipt: " in said
    assert "Make it in a stage" in said
    idempotency.assert_idempotent(client, "POST /pay", effects=bank.count, ignore=("receipt",))


def test_a_layer_that_changes_each_response_is_found(idempotency: Kit, bank: Bank) -> None:
    """T-07: it is outside of the middleware, so a replay differs from the first response."""

    async def pay() -> Any:
        return await idem.arun("charge", bank.acharge, 1, idem.key_for("charge"))

    client = _client(pay)

    @client.app.middleware("http")
    async def wrap(request: Request, call_next: Any) -> Response:
        await call_next(request)
        return JSONResponse({"trace": str(uuid.uuid4())})

    said = _said(idempotency, client, effects=bank.count)
    assert "two responses for one key differ" in said
    assert "a layer outside of the idempotency middleware has changed it" in said


def test_a_header_that_is_named_is_compared(idempotency: Kit, bank: Bank) -> None:
    """T-07: other headers may differ each time."""

    async def pay() -> Any:
        return await idem.arun("charge", bank.acharge, 1, idem.key_for("charge"))

    client = _client(pay)

    @client.app.middleware("http")
    async def number(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["X-Number"] = str(uuid.uuid4())
        return response

    idempotency.assert_idempotent(client, "POST /pay", effects=bank.count)
    said = _said(idempotency, client, effects=bank.count, compare_headers=("X-Number",))
    assert "the header X-Number: " in said


# Code that survives its crash, and other outcomes


def test_code_that_goes_on_after_it_was_killed_is_found(idempotency: Kit, bank: Bank) -> None:
    """T-08: the scenario is inconclusive then, and the kit says so."""

    async def pay() -> Any:
        try:
            return await idem.arun("charge", bank.acharge, 1, idem.key_for("charge"))
        except BaseException:
            return {"charged": "perhaps"}

    with pytest.raises(KitError, match="the endpoint went on after its worker was killed"):
        idempotency.assert_idempotent(_client(pay), "POST /pay", effects=bank.count)


def test_a_stage_that_is_only_used_once_is_found(idempotency: Kit, calls: list[str]) -> None:
    """T-08: the state of the first request disturbs the next one."""

    async def pay() -> Any:
        if not calls:
            await idem.arun("charge", calls.append, "charge", key=None)
        return {"charged": True}

    with pytest.raises((KitError, NotIdempotent), match="reset="):
        idempotency.assert_idempotent(_client(pay), "POST /pay", effects=calls)
    calls.clear()
    idempotency.assert_idempotent(_client(pay), "POST /pay", effects=calls, in_doubt=False, reset=calls.clear)


def test_a_retry_that_is_refused_as_a_conflict_is_found(idempotency: Kit) -> None:
    """T-05: the resumed attempt finds the row of the killed one."""
    rows: set[str] = set()

    async def pay(request: Request) -> Any:
        name = request.headers["idempotency-key"]
        if name in rows:
            return JSONResponse({"detail": "exists"}, status_code=422)
        rows.add(name)
        await idem.asave_stage("row", name)
        return JSONResponse({"name": name}, status_code=201)

    said = _said(idempotency, _client(pay), effects=rows)
    assert "the response has status 422, a plain request got 201" in said


def test_a_retry_that_raises_is_found(idempotency: Kit) -> None:
    """T-05: the exception that the test client raises is the cause of the error."""
    rows: set[str] = set()

    async def pay(request: Request) -> Any:
        name = request.headers["idempotency-key"]
        if name in rows:
            raise LookupError("exists")
        rows.add(name)
        await idem.asave_stage("row", name)
        return {"name": name}

    with pytest.raises(NotIdempotent) as caught:
        idempotency.assert_idempotent(_client(pay), "POST /pay", effects=rows)
    assert "the request that was sent again raised LookupError: exists" in str(caught.value)
    assert isinstance(caught.value.__cause__, LookupError)


def test_a_policy_that_admits_no_further_attempt_is_safe(idempotency: Kit, calls: list[str]) -> None:
    """T-06: a refusal with an unknown outcome is no second effect."""

    async def pay() -> Any:
        return await idem.arun("charge", calls.append, "charge")

    idempotency.assert_idempotent(_client(pay, on_abandoned="reject"), "POST /pay", effects=calls)


def test_a_stage_in_doubt_is_safe(idempotency: Kit, calls: list[str]) -> None:
    """T-06: the intent of an external effect is recorded, and its outcome is unknown."""

    async def pay() -> Any:
        return await idem.arun("charge", calls.append, "charge", external=True)

    idempotency.assert_idempotent(_client(pay), "POST /pay", effects=calls)
