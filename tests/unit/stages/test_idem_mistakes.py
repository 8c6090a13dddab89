"""What is easily written wrong with ``idem``, and what it says then, before anything has run."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import Any

import pytest

from open_idempotency import idem
from open_idempotency.exceptions import ConfigurationError, StageValueError
from open_idempotency.flask import Idempotency
from tests.unit.stages.stage_client import Client, Counted


@pytest.fixture
def client() -> Client:
    """A client of a backend of its own."""
    return Client()


def charge(amount: int, key: str | None = None) -> str:
    """A call to a provider that knows keys."""
    return f"{amount} with {key}"


def test_a_key_that_may_be_the_functions_is_asked_about(client: Client) -> None:
    """S-01: or the provider would get none, and nobody would know."""
    with client.request(), pytest.raises(TypeError, match=r"key= is the stage's.*functools\.partial"):
        idem.run("charge", charge, 500, key=idem.key_for("charge"))


def test_a_partial_function_has_its_own(client: Client) -> None:
    """S-01: both, each where it belongs."""
    with client.request():
        assert idem.run("charge", functools.partial(charge, key="theirs"), 500, key="ours") == "500 with theirs"
        assert idem.stages[0].key == "ours"


def test_an_argument_that_is_not_given_needs_no_question(client: Client) -> None:
    """S-01: a function may have what names it likes."""
    with client.request():
        assert idem.run("charge", charge, 500) == "500 with None"


@pytest.mark.anyio
async def test_it_is_asked_in_coroutines_too(client: Client) -> None:
    """S-08."""
    with client.request(), pytest.raises(TypeError, match="external= is the stage's"):
        await idem.arun("charge", lambda external: None, external=True)


@pytest.mark.parametrize("result", ["a charge", None])
def test_what_a_function_returned_is_no_function(client: Client, result: Any) -> None:
    """S-01: its effect has happened outside of the stage by then."""
    with client.request(), pytest.raises(TypeError, match="pass the function and its arguments apart"):
        idem.run("charge", result)


@pytest.mark.anyio
async def test_a_coroutine_is_no_function(client: Client) -> None:
    """S-08: and is closed, so that nothing warns of it instead."""
    with client.request(), pytest.raises(TypeError, match="pass the function and its arguments apart"):
        await idem.arun("charge", Counted().awaited())


def test_a_decorator_without_a_name_says_how_it_is_written() -> None:
    """S-01."""
    stage: Any = idem.stage
    with pytest.raises(TypeError, match=r"@idem\.stage\('name'\)"):

        @stage
        def reserve() -> None: ...


def test_a_class_as_transaction_is_refused(client: Client) -> None:
    """S-05: it would be called, and make one that nobody commits."""

    class Session:
        """An application's."""

    with client.request(), pytest.raises(ConfigurationError, match="tx= is the class Session"):
        idem.stage("order", tx=Session)(Counted().__call__)()


@pytest.mark.parametrize("form", [lambda tx: idem.stage("order", tx=tx), lambda tx: idem.atomic(tx)])
def test_a_wrong_transaction_is_told_without_a_key_too(client: Client, form: Callable[[Any], Any]) -> None:
    """S-05: whoever tries without one hears of it, and not only production."""
    with client.request(key=b""), pytest.raises(ConfigurationError, match="tx= takes a SQLAlchemy Session"):
        form(object()).__enter__()


def test_a_name_means_nothing_where_no_django_is_set_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """S-05: and is not repeated, as it may be a URL."""
    from django.conf import settings

    from open_idempotency.ledger.transactions import transaction_of

    monkeypatch.delenv("DJANGO_SETTINGS_MODULE", raising=False)
    monkeypatch.setattr(type(settings), "configured", False)
    with pytest.raises(ConfigurationError, match="Django is not set up") as caught:
        transaction_of("postgresql://user:secret@host/shop")
    assert "secret" not in str(caught.value)


def test_a_declared_type_that_cannot_be_kept_is_told_with_its_stage(client: Client) -> None:
    """S-02a: before the call, and what to return instead."""
    reserve = Counted()
    with client.request(), pytest.raises(StageValueError, match=r"stage 'reserve': .* Counted .* return a text"):
        idem.run("reserve", reserve, returns=Counted)
    assert reserve.calls == 0


def test_a_backend_in_the_place_of_the_application_is_told() -> None:
    """Bad input: Flask's extension takes the application first."""
    wrong: Any = "sqlite:///idem.db"
    with pytest.raises(ConfigurationError, match=r"first argument is the Flask application.*backend="):
        Idempotency(wrong)


@pytest.mark.anyio
async def test_a_stage_that_is_not_awaited_does_not_run_and_python_warns(client: Client) -> None:
    """S-08: the effect does not happen, and the warning names the line."""
    effect = Counted()

    def endpoint() -> None:
        idem.arun("charge", effect.awaited)
        gc.collect()

    with client.request(), pytest.warns(RuntimeWarning, match="never awaited"):
        endpoint()
    assert effect.calls == 0
