"""The command of the conformance runner: exit codes, the table, JSON; it runs without pytest."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import pytest

from open_idempotency.conformance.http import CouldNotRun, Target, examine
from open_idempotency.conformance.http.cli import STATEMENTS, main
from open_idempotency.conformance.http.observations import LIMITS
from tests.conformance import servers, wrong_responses
from tests.conformance.shop import Shop

SECONDS = 60
OPTIONS = ["--required", "--header", "Authorization: Bearer a", "--other-caller", "Authorization: Bearer b"]


def _run(url: str, *more: str) -> int:
    return main([f"{url}/charges", "--slow-url", f"{url}/slow", "--failing-url", f"{url}/failing", *OPTIONS, *more])


def test_what_is_right_exits_with_0(capsys: pytest.CaptureFixture[str]) -> None:
    """The table has a row for each statement."""
    with servers.wsgi(Shop()) as url:
        assert _run(url) == 0
    table = capsys.readouterr().out
    for statement in STATEMENTS:
        assert f"  {statement.id} " in table
        assert statement.section in table
    assert "PASSED" in table


def test_a_fault_exits_with_1_and_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """The last line has the result."""
    with servers.wsgi(wrong_responses.AnotherStatus()) as url:
        assert _run(url) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "FAILED: retry-status"
    (row,) = [line for line in out.splitlines() if line.startswith("fails ")]
    assert row.split()[1:5] == ["retry-status", "SHOULD", "draft", "2.6"]
    assert "- 201, then 200, 200" in out


def test_a_fault_of_an_info_exits_with_0() -> None:
    """A statement of level INFO never fails a run."""
    with servers.wsgi(wrong_responses.Unmarked()) as url:
        assert _run(url) == 0


def test_a_statement_that_is_left_out_does_not_count() -> None:
    """``--skip`` is for an API that deviates on purpose."""
    with servers.wsgi(wrong_responses.ReusedIs400()) as url:
        assert _run(url, "--skip", "reuse-status", "--skip", "reuse-meanwhile") == 0


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    """Standard output has one JSON object with the same findings, and nothing else."""
    with servers.wsgi(wrong_responses.AnotherStatus()) as url:
        assert _run(url, "--json") == 1
    out = capsys.readouterr().out
    found = json.loads(out)
    assert found["passed"] is False
    assert [each["id"] for each in found["statements"]] == [each.id for each in STATEMENTS]
    (fault,) = [each for each in found["statements"] if each["result"] == "fails"]
    assert (fault["id"], fault["seen"]) == ("retry-status", "201, then 200, 200")
    assert sum(found["totals"].values()) == len(STATEMENTS)
    assert len(found["exchanges"]) <= sum(LIMITS.values())
    assert "Bearer" not in out


def test_it_warns_before_it_sends(capsys: pytest.CaptureFixture[str]) -> None:
    """The warning on standard error has the number of requests and the address."""
    with servers.wsgi(Shop()) as url:
        _run(url)
        warning = capsys.readouterr().err
        assert f"Sending up to {sum(LIMITS.values())} requests to {url}/charges" in warning


def test_the_help_lists_how_many_requests_are_sent(capsys: pytest.CaptureFixture[str]) -> None:
    """For each scene, and in total."""
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for scene, number in {**LIMITS, "together": sum(LIMITS.values())}.items():
        assert f"  {number:>3}  {scene}\n" in text


def test_a_refused_connection_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    """No server listens there."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert main([f"http://127.0.0.1:{port}/"]) == 2
    assert "ConnectionRefusedError" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--slow-url", "--failing-url"])
def test_another_address_where_nobody_listens_exits_with_2(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    """O-34: a report without this address would look as if it had been tested."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with servers.wsgi(Shop()) as url:
        assert main([f"{url}/charges", option, f"http://127.0.0.1:{port}/"]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert f"could not run: {option} http://127.0.0.1:{port}/: no response (ConnectionRefusedError" in err


def test_the_report_names_the_revision_of_the_draft(capsys: pytest.CaptureFixture[str]) -> None:
    """O-35: an unknown revision is an error, so that a report never claims what was not tested."""
    with servers.wsgi(Shop()) as url:
        assert main([f"{url}/charges", "--draft", "07", "--required", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["draft"] == "draft-ietf-httpapi-idempotency-key-header-07"
    with pytest.raises(CouldNotRun, match="no revision '08' here, but 07"):
        examine(Target(url="http://127.0.0.1:1/", draft="08"))


def test_a_silent_server_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    """The run ends after the timeout."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        assert main([f"http://127.0.0.1:{listener.getsockname()[1]}/", "--timeout", "0.2"]) == 2
    assert "TimeoutError" in capsys.readouterr().err


def test_a_plain_request_that_is_refused_exits_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    """The endpoint needs another request, so nothing can be tested."""

    class Locked(Shop):
        def respond(self, request: object, header: str | None) -> object:
            return self.problem(401, "who are you?")

    with servers.wsgi(Locked()) as url:
        assert main([f"{url}/charges"]) == 2
    assert "responds 401" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["not-an-address"],
        ["http://127.0.0.1/", "--nonsense"],
        ["http://127.0.0.1/", "--header", "no colon"],
        ["http://127.0.0.1/", "--data-file", "there-is-none.json"],
        ["http://127.0.0.1/", "--skip", "nothing"],
        ["http://127.0.0.1/", "--draft", "08"],
        ["http://127.0.0.1/", "--draft", ""],
        ["http://127.0.0.1/", "--method", "PO ST"],
        ["http://127.0.0.1/", "--header-name", "no token"],
        ["http://127.0.0.1/", "--slow-url", "nowhere"],
        ["http://127.0.0.1/", "--failing-url", "ftp://host/"],
        ["http://127.0.0.1/", "--other-caller", "no colon"],
        ["http://127.0.0.1/", "--other-data", "{}"],
        ["http://127.0.0.1/", "--data", "1", "--data-file", "2"],
        ["http://127.0.0.1/", "--timeout", "-1"],
        ["http://127.0.0.1/", "--timeout", "soon"],
        ["https://127.0.0.1:1/", "--ca-file", "there-is-none.pem"],
    ],
    ids=lambda arguments: " ".join(arguments) or "none",
)
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    """O-34: the parser or the target reports it."""
    try:
        code: object = main(arguments)
    except SystemExit as ended:
        code = ended.code
    assert code == 2


def test_it_runs_without_pytest_and_every_optional_package() -> None:
    """The base install suffices."""
    script = (
        "import runpy, sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('pytest', '_pytest', 'anyio', 'redis', 'starlette', 'flask', 'django'):\n"
        "            raise ImportError(f'{name} is not installed')\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "sys.argv[1:] = [sys.argv[1], '--required']\n"
        "runpy.run_module('open_idempotency.conformance', run_name='__main__', alter_sys=True)\n"
    )
    with servers.wsgi(Shop()) as url:
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", script, f"{url}/charges"],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED" in done.stdout


def test_the_contract_suite_is_still_found_by_name() -> None:
    """The package still exports its earlier names, on access."""
    from open_idempotency import conformance

    assert {"AsyncVerbs", "BackendContract", "ManualClock"} <= set(dir(conformance))
    assert conformance.BackendContract.__name__ == "BackendContract"
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = conformance.Nothing
