"""Finding a record by the client's key: it needs the caller, and a hint says how to name it."""

from __future__ import annotations

import io
import sys
import types

import pytest

from open_idempotency import IdempotencyPolicy, operations
from open_idempotency.backend import Backend
from tests.cli.running import Shell
from tests.operations.stores import Maker

KEY = "8e03978e-40d5-43e8-bc93-6894a57f9324"


def _made(maker: Maker, policy: IdempotencyPolicy, **who: str) -> str:
    """Make a record of that key; its id."""
    (located,) = [each for each in operations.locate(policy, KEY, **who) if not each.caller.startswith("session")]
    maker.lease(record_id=located.record_id)
    return located.record


@pytest.mark.parametrize("who", [{"user": "7"}, {"authorization": "Bearer ann"}, {}], ids=["user", "credentials", "no"])
def test_a_key_is_found_by_its_caller(
    shell: Shell, maker: Maker, who: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """P-11: with the application's policy."""
    policy = IdempotencyPolicy(application="shop")
    record = _made(maker, policy, **who)
    module = types.ModuleType("policy_of_keys")
    module.policy = policy  # type: ignore[attr-defined]  # what --app names
    monkeypatch.setitem(sys.modules, module.__name__, module)
    options = [word for name, value in who.items() for word in (f"--{name}", value)]
    done = shell("show", KEY, "--app", "policy_of_keys:policy", *options)
    assert (done.code, done.err) == (0, "")
    assert record in done.out


def test_a_scope_is_enough_without_an_application(shell: Shell, maker: Maker) -> None:
    """P-11: for the default policy; ``--application`` gives another one."""
    policy = IdempotencyPolicy(application="shop", scope=lambda request: "acme")
    record = _made(maker, policy, scope="acme")
    assert record in shell("show", KEY, "--scope", "acme", "--application", "shop").out
    assert shell("show", KEY, "--scope", "acme").code == 3


def test_credentials_need_not_be_an_argument(shell: Shell, maker: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    """P-23: other users of a machine see the arguments of a process."""
    record = _made(maker, IdempotencyPolicy(), authorization="Bearer ann")
    monkeypatch.setattr(sys, "stdin", io.StringIO("Bearer ann\n"))
    assert record in shell("show", KEY, "--authorization", "-").out


def test_a_key_without_a_caller_says_what_to_give(shell: Shell) -> None:
    """P-11: no call is made."""
    done = shell("show", "order-42")
    assert done.code == 3
    assert "--app module:attribute" in done.err


def test_a_key_of_several_callers_names_their_records(
    shell: Shell, maker: Maker, backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P-11, P-19: with the application, and without a caller."""
    import os

    from open_idempotency._core.keys import About, key_of
    from open_idempotency.backend import Claim

    policy = IdempotencyPolicy(application="shop")
    module = types.ModuleType("policy_of_several")
    module.policy = policy  # type: ignore[attr-defined]  # what --app names
    monkeypatch.setitem(sys.modules, module.__name__, module)
    ids: list[str] = []
    for user in ("ann", "bob"):
        located = operations.locate(policy, KEY, authorization=user)[0]
        owner = os.urandom(16)
        about = About("POST", "/orders", located.caller_id, "", key_of(KEY, policy)).encode(owner)
        backend.claim(Claim(located.record_id, b"f", owner, 60.0, 3600.0, about=about))
        ids.append(located.record[:12])
    done = shell("show", KEY, "--app", "policy_of_several:policy")
    assert done.code == 4
    assert all(each in done.err for each in ids)
    assert shell("show", KEY, "--app", "policy_of_several:policy", "--authorization", "bob").code == 0


def test_a_session_is_given_by_its_entries(shell: Shell) -> None:
    """P-11: as name=id."""
    assert shell("show", KEY, "--session", "user_id=7").code == 3
    with pytest.raises(SystemExit):
        shell("show", KEY, "--session", "user_id")
