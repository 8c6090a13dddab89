"""django-allauth's headless API, whose 401 is a step of a login, with the rule of the docs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.docs.pages import ROOT, blocks

PAGE = ROOT / "docs" / "which-statuses.md"
PROGRAM = Path(__file__).with_name("allauth_flow.py")


def _run(hook: str) -> dict[str, Any]:
    done = subprocess.run([sys.executable, str(PROGRAM), hook], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.fixture(scope="module")
def with_the_rule(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results with the rule of the docs."""
    (rule,) = [block.text for block in blocks(PAGE) if "def store_next_steps" in block.text]
    hook = tmp_path_factory.mktemp("allauth") / "hook.py"
    hook.write_text(rule, encoding="utf-8")
    return _run(str(hook))


@pytest.mark.parametrize(("step", "mails"), [("signup", 1), ("code", 1), ("browser signup", 1)])
def test_a_step_towards_a_login_is_taken_once(with_the_rule: dict[str, Any], step: str, mails: int) -> None:
    """R-13: the retry gets the stored 401, and one e-mail was sent."""
    taken = with_the_rule["steps"][step]
    assert taken == {"statuses": [401, 401], "replayed": [False, True], "same": True, "mails": mails}


def test_each_registered_user_exists_once(with_the_rule: dict[str, Any]) -> None:
    """R-13: two users registered, each twice."""
    assert with_the_rule["users"] == 2


@pytest.mark.parametrize("step", ["verify", "confirm", "login"])
def test_the_step_that_ends_in_a_login_is_taken_once(with_the_rule: dict[str, Any], step: str) -> None:
    """R-13, O-13: its 200 is stored without a rule; the code was used up by the first request."""
    assert with_the_rule["steps"][step] == {
        "statuses": [200, 200],
        "replayed": [False, True],
        "same": True,
        "mails": 0,
    }


def test_a_401_that_only_refuses_is_not_stored(with_the_rule: dict[str, Any]) -> None:
    """R-13: the same request may succeed after a login."""
    refused = with_the_rule["steps"]["refused"]
    assert (refused["statuses"], refused["replayed"]) == ([401, 401], [False, False])


def test_without_a_rule_the_retry_of_a_registration_runs_again() -> None:
    """O-13: without the rule, the second e-mail says that the account exists."""
    signup = _run("-")["steps"]["signup"]
    assert (signup["statuses"], signup["replayed"], signup["mails"]) == ([401, 401], [False, False], 2)
