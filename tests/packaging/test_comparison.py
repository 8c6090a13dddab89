"""The comparison finds faults in wrong applications, and none in this package; its page agrees with its results."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping

import pytest

from benchmarks import results
from benchmarks.comparison.rig import Rig
from benchmarks.comparison.scenarios import SCENARIOS, verdict
from benchmarks.comparison.subjects import SUBJECTS, Subject
from benchmarks.interface import Style
from tests.docs.pages import ROOT

_BY_NAME = {scenario.name: scenario for scenario in SCENARIOS}


def _verdicts(make: str, *names: str, style: Style = "wsgi") -> dict[str, str]:
    with Rig(Subject("open-idempotency", "Flask", make, style, "memory")) as rig:
        return {name: verdict(_BY_NAME[name], rig) for name in names}


@pytest.mark.parametrize(("framework", "style"), [("flask", "wsgi"), ("fastapi", "asgi")])
def test_this_package_passes_in_every_scenario_but_those_that_need_a_server(framework: str, style: Style) -> None:
    """The same scenarios as for other packages; the whole run uses Redis and kills a worker."""
    replayed = "status, bytes, headers; marked `idempotent-replayed`"
    expected = {
        "replay": replayed,
        "streamed": replayed,
        "body": "422",
        "path": "422",
        "method": "422",
        "callers": "separate",
        "nokey": "runs each time",
        "keys": "400, 400, 400",
        "duplicate": "409 at once, `Retry-After`",
        "leaves": "finishes; the retry is a replay",
        "fails": "runs again",
        "raises": "runs again",
    }
    assert _verdicts(f"benchmarks.comparison.ours:{framework}", *expected, style=style) == expected


_FAULTS: Mapping[str, Mapping[str, str]] = {
    "unprotected": {
        "replay": "**runs again**",
        "body": "another request",
        "duplicate": "**runs twice**",
        "slow": "**second run at once**",
        "leaves": "finishes; **the retry runs again**",
        "crash": "runs again at once",
    },
    "by_key_alone": {
        "replay": "status, bytes; not marked",
        "body": "first response",
        "path": "first response",
        "callers": "**gets the other's response**",
        "keys": "runs, runs, runs",
        "duplicate": "**runs twice**",
        "fails": "500 is replayed",
    },
    "held_for_ever": {
        "replay": "**refused: 409**",
        "callers": "409",
        "nokey": "409",
        "duplicate": "409 at once",
        "fails": "**409, not run again**",
        "raises": "**409, not run again**",
        "leaves": "finishes; **the retry gets 409**",
        "down": "not applicable: memory: no server that could be down",
    },
    "does_not_start": {
        "replay": "does not run: RuntimeError: the application does not start: RuntimeError: no such backend",
    },
}


@pytest.mark.parametrize("name", _FAULTS)
def test_the_scenarios_find_the_faults_of_an_application_that_is_protected_wrongly(name: str) -> None:
    """The scenarios can fail."""
    expected = _FAULTS[name]
    assert _verdicts(f"tests.support.wrong_apps:{name}", *expected) == expected


def test_a_scenario_that_cannot_be_asked_says_why() -> None:
    """Without starting a server."""
    make = "tests.support.wrong_apps:does_not_start"
    subject = Subject("open-idempotency", "Flask", make, "wsgi", "memory", not_applicable={"streamed": "no body"})
    with Rig(subject) as rig:
        assert verdict(_BY_NAME["streamed"], rig) == "not applicable: no body"


def test_the_results_have_every_subject_and_every_scenario_and_none_that_did_not_run() -> None:
    """``tox -e compare`` writes them; another test compares them with the page."""
    stored = results.read(results.FOLDER, "comparison")
    assert stored is not None
    rows = stored["results"]
    assert [(row["package"], row["framework"], row["backend"]) for row in rows] == [
        (subject.package, subject.framework, subject.backend) for subject in SUBJECTS
    ]
    for row in rows:
        assert list(row["verdicts"]) == list(_BY_NAME)
        assert "does not run: " not in json.dumps(row["verdicts"])


def test_the_results_are_those_of_the_versions_that_are_pinned() -> None:
    """A new release of a package needs a new run."""
    stored = results.read(results.FOLDER, "comparison")
    assert stored is not None
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8").partition("bench-peers = [")[2].partition("\n]")[0]
    pinned = dict(re.findall(r'"([\w-]+)(?:\[[\w,]+\])?==([\w.]+)', text))
    measured = {row["package"]: row["version"] for row in stored["results"]}
    assert {name: measured[name] for name in pinned} == pinned
    assert set(measured) - set(pinned) == {"open-idempotency"}


def test_the_page_describes_every_peer_with_its_version_and_says_when_it_was_measured() -> None:
    """Each package has a row and a paragraph."""
    stored = results.read(results.FOLDER, "comparison")
    assert stored is not None
    page = (ROOT / "docs" / "comparison.md").read_text(encoding="utf-8")
    assert stored["circumstances"]["date"] in page
    for package, version in {row["package"]: row["version"] for row in stored["results"]}.items():
        assert f"{package} {version}" in page
        assert package == "open-idempotency" or f"\n**{package}** " in page
