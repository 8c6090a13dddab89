"""The output of each command, for people and as JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from open_idempotency.backend import Get
from open_idempotency.cli import main
from tests.cli.running import Shell, environment, run
from tests.operations.stores import Maker


def test_a_list_is_a_table(shell: Shell, maker: Maker) -> None:
    """P-10: one line for each record, with its route and its worker."""
    lease = maker.in_doubt()
    done = shell("list", "--state", "stuck")
    head, line = done.out.splitlines()
    assert head.split() == ["RECORD", "STATE", "AGE", "ATTEMPT", "STAGES", "LEASE", "ROUTE", "HOLDER"]
    assert line.split()[0] == lease.record_id.hex()[:12]
    assert "abandoned, in doubt" in line
    assert "POST /orders/{id}  web-3:812" in line


def test_a_list_without_records_says_so(shell: Shell) -> None:
    """P-10: JSON is an empty list; both formats exit with 0."""
    assert (shell("list").out, shell("list", "--state", "stuck").out) == ("no records\n", "no stuck records\n")
    assert json.loads(shell("list", "--json").out) == []


def test_a_list_that_is_cut_says_how_many_there_are(shell: Shell, maker: Maker) -> None:
    """P-10: on standard error, so that standard output is valid JSON."""
    for _ in range(3):
        maker.alive()
    done = shell("list", "--limit", "2", "--json")
    assert len(json.loads(done.out)) == 2
    assert done.err == "open-idempotency: the oldest 2 of 3; --limit shows more\n"


def test_show_explains_and_says_what_to_do(shell: Shell, maker: Maker) -> None:
    """P-11: the suggested commands can be copied and run."""
    record = maker.in_doubt().record_id.hex()[:12]
    out = shell("show", record).out
    assert "Stage 'charge' is in doubt" in out
    assert f"open-idempotency resolve {record} --stage charge --found JSON" in out
    assert f"open-idempotency release {record}" in out
    reported = json.loads(shell("show", record, "--json").out)
    assert (reported["state"], reported["stuck"], reported["holder"]) == ("abandoned", True, "web-3:812")
    assert reported["in_doubt"] == [{"name": "charge", "key": ""}]
    assert any("in doubt" in sentence for sentence in reported["explanation"])


def test_show_has_bodies_on_request_alone(shell: Shell, maker: Maker) -> None:
    """P-12: for people and in JSON."""
    record = maker.completed().record_id.hex()
    for more in ([], ["--json"]):
        assert "secret-42" not in shell("show", record, *more).out
        assert "secret-42" in shell("show", record, "--body", *more).out


def test_control_characters_of_a_body_reach_no_terminal(shell: Shell, maker: Maker) -> None:
    """P-12: they could move the cursor or overwrite the output."""
    record = maker.completed(b"\x1b[2Jgone").record_id.hex()
    out = shell("show", record, "--body").out
    assert "\x1b" not in out
    assert "\\x1b[2Jgone" in out


def test_release_forget_and_resolve_report_as_json(shell: Shell, maker: Maker) -> None:
    """P-13, P-14, P-15: for scripts."""
    doubtful, alive = maker.in_doubt().record_id.hex(), maker.alive().record_id.hex()
    for arguments, done in (
        (["resolve", doubtful, "--stage", "charge", "--found", '"ch_1"', "--yes"], "resolved"),
        (["release", alive, "--yes"], "released"),
        (["forget", alive, "--yes"], "forgotten"),
    ):
        reported = json.loads(shell(*arguments, "--json").out)
        assert reported == {"record": arguments[1], "done": done}


def test_stats_count_as_a_table_and_as_json(shell: Shell, maker: Maker) -> None:
    """P-16."""
    maker.in_doubt()
    maker.completed()
    reported = json.loads(shell("stats", "--json").out)
    assert (reported["total"], reported["stuck"], reported["routes"]) == (2, 1, {"POST /orders/{id}": 2})
    out = shell("stats").out
    assert "records     2" in out
    assert "POST /orders/{id}  2" in out


def test_purge_and_migrate_report_as_json(shell: Shell) -> None:
    """P-18."""
    assert json.loads(shell("purge", "--batch", "10", "--json").out) == {"deleted": 0}
    assert json.loads(shell("migrate", "--json").out) == {"applied": []}


def test_the_backend_is_named_by_a_variable_an_option_or_an_argument(
    file_url: str, maker: Maker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """P-23: an argument wins over the variable."""
    maker.alive()
    monkeypatch.setenv("OPEN_IDEMPOTENCY_BACKEND", "redis://127.0.0.1:1")
    assert [main(["stats", file_url]), main(["stats", "--backend", file_url])] == [0, 0]
    monkeypatch.setenv("OPEN_IDEMPOTENCY_BACKEND", file_url)
    capsys.readouterr()
    assert main(["stats", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["total"] == 1


def test_the_policy_of_an_application_opens_what_is_encrypted(
    shell: Shell, maker: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P-12, P-23: the application is imported from the current directory."""
    from open_idempotency import IdempotencyPolicy
    from open_idempotency._core.stored_response import seal_stage
    from open_idempotency.encryption import EncryptionKeys, new_key
    from tests.operations.stores import value

    key = new_key()
    policy = IdempotencyPolicy(encryption=EncryptionKeys({"k": key}))
    lease = maker.lease()
    maker.save(lease, seal_stage(value("charge", '"ch_77"'), lease, policy))
    name = f"shop_{lease.record_id.hex()[:8]}"
    (tmp_path / f"{name}.py").write_text(
        "from open_idempotency import IdempotencyPolicy\nfrom open_idempotency.encryption import EncryptionKeys\n"
        f"policy = IdempotencyPolicy(encryption=EncryptionKeys({{'k': {key!r}}}))\n",
        encoding="utf-8",
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    record = lease.record_id.hex()
    refused = shell("show", record, "--body")
    assert (refused.code, refused.out) == (9, "")
    assert "--app" in refused.err
    assert "ch_77" in shell("show", record, "--body", "--app", f"{name}:policy").out


def test_the_module_can_be_run(file_url: str) -> None:
    """P-18: with ``python -m``, under both module names, where the script is not on the path."""
    done = run(["stats"], env=environment(OPEN_IDEMPOTENCY_BACKEND=file_url))
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("records     0")


def test_every_command_shows_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    """P-18: the help has an example and the exit codes."""
    for name in ("list", "show", "release", "resolve", "forget", "stats", "doctor", "purge", "migrate", "ledger"):
        with pytest.raises(SystemExit) as ended:
            main([name, "--help"])
        out = capsys.readouterr().out
        assert ended.value.code == 0
        assert f"example: open-idempotency {name}" in out
        assert "exit codes: 0 done" in out


def test_a_release_names_the_stages_that_are_in_doubt(shell: Shell, maker: Maker) -> None:
    """P-14: the worker died in a stage, and its lease has not ended."""
    lease = maker.in_doubt(seconds=30.0)
    record = lease.record_id.hex()
    out = shell("release", record, "--yes").out
    assert out == f"released {record[:12]}: the key is free, 2 stages kept; stage 'charge' is in doubt: resolve it\n"


def test_a_released_record_is_shown_as_free(shell: Shell, maker: Maker) -> None:
    """P-14: ``show`` says that the key is free, and suggests no second release."""
    lease = maker.alive()
    shell("release", lease.record_id.hex(), "--yes")
    out = shell("show", lease.record_id.hex()).out
    assert "state    free" in out
    assert "No attempt holds this record: the key is free." in out
    assert "open-idempotency release" not in out
    assert maker.backend.get(Get(lease.record_id)) is not None
