"""The project files agree with each other: workflows, classifiers, tox, the lock file, the README's links."""

from __future__ import annotations

import configparser
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.docs.pages import REPOSITORY, ROOT, links

if sys.version_info >= (3, 11):
    import tomllib
else:  # pytest needs it where the standard library has no tomllib
    import tomli as tomllib

WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
YAML = [*(ROOT / ".github").rglob("*.yml"), ROOT / ".pre-commit-config.yaml", ROOT / ".readthedocs.yaml"]
#: the only address of files in the lock file
PUBLIC = re.compile(r"https://files\.pythonhosted\.org/packages/")


def _project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _tox() -> configparser.ConfigParser:
    tox = configparser.ConfigParser(interpolation=None)
    tox.read(ROOT / "tox.ini", encoding="utf-8")
    return tox


def _workflow(path: Path) -> dict[str, Any]:
    workflow: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return workflow


def _jobs() -> list[tuple[str, dict[str, Any]]]:
    return [(f"{path.stem}: {name}", job) for path in WORKFLOWS for name, job in _workflow(path)["jobs"].items()]


def _steps(job: dict[str, Any]) -> list[dict[str, Any]]:
    return job.get("steps", [])


def _environments(job: dict[str, Any]) -> set[str]:
    """The tox environments that a job runs."""
    named = {name for step in _steps(job) for name in re.findall(r"tox -e (\S+)", step.get("run", ""))}
    matrix = job.get("strategy", {}).get("matrix", {})
    called = set(re.findall(r"tox -e \$\{\{ matrix\.(\w+) \}\}", "\n".join(s.get("run", "") for s in _steps(job))))
    return {name for name in named if name != "${{"} | {name for key in called for name in matrix[key]}


def _supported() -> list[str]:
    found = (
        re.fullmatch(r"Programming Language :: Python :: (3\.\d+)", c) for c in _project()["project"]["classifiers"]
    )
    return [match[1] for match in found if match]


@pytest.mark.parametrize("path", YAML, ids=lambda path: path.name)
def test_every_yaml_file_can_be_read(path: Path) -> None:
    """A file with a syntax error would be ignored silently."""
    assert isinstance(yaml.safe_load(path.read_text(encoding="utf-8")), dict)


def test_the_workflows_run_environments_that_tox_has() -> None:
    """CI runs both parts of ``tox`` in separate jobs, and more."""
    tox = _tox()
    known = {name.partition(":")[2] for name in tox.sections() if name.startswith("testenv:")} | {"py"}
    run = {name for _, job in _jobs() for name in _environments(job)}
    assert run <= known
    assert {"lint", "py", "lowest", "coverage", "full"} <= run


def test_the_pythons_of_the_workflow_are_those_of_the_classifiers() -> None:
    """A version outside of the classifiers is an experiment, whose failure does not fail the run."""
    matrix = _workflow(ROOT / ".github" / "workflows" / "ci.yml")["jobs"]["tests"]["strategy"]["matrix"]
    assert matrix["python"] == _supported()
    assert all(extra["experimental"] and extra["python"] not in _supported() for extra in matrix["include"])


def test_the_oldest_python_is_said_once() -> None:
    """requires-python, the classifiers, ruff, mypy and pyright agree."""
    project = _project()
    oldest = _supported()[0]
    assert project["project"]["requires-python"] == f">={oldest}"
    assert project["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert project["tool"]["mypy"]["python_version"] == project["tool"]["pyright"]["pythonVersion"] == oldest


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_may_only_read(path: Path) -> None:
    """A job requests further permissions itself; only the publishing one does."""
    workflow = _workflow(path)
    assert workflow["permissions"] == {"contents": "read"}
    asking = {name: job["permissions"] for name, job in workflow["jobs"].items() if "permissions" in job}
    assert asking == ({"publish": {"id-token": "write"}} if path.stem == "release" else {})


def test_every_action_is_pinned_by_commit() -> None:
    """A tag can be moved to other code."""
    used = [step["uses"] for _, job in _jobs() for step in _steps(job) if "uses" in step]
    assert used
    assert [name for name in used if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40}", name)] == []


def test_what_publishes_runs_none_of_our_code_and_has_no_secret() -> None:
    """The publishing job takes files that another job built, in an environment that a person approves."""
    publish = _workflow(ROOT / ".github" / "workflows" / "release.yml")["jobs"]["publish"]
    assert publish["environment"]["name"] == "pypi"
    assert set(publish["needs"]) == {"ci", "build"}
    assert [step for step in _steps(publish) if "run" in step] == []
    assert "secrets." not in str(publish)


def test_the_lock_file_names_public_files_with_their_hashes() -> None:
    """Every file is on a public index."""
    lock = tomllib.loads((ROOT / "pylock.toml").read_text(encoding="utf-8"))
    for package in lock["packages"]:
        files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
        assert files, package["name"]
        assert all(PUBLIC.match(file["url"]) and file["hashes"]["sha256"] for file in files), package["name"]
        assert PUBLIC.match(package.get("index", PUBLIC.pattern.replace("\\", "")))


@pytest.mark.parametrize("group", ["test", "check", "docs"])
def test_the_lock_file_has_what_a_group_asks_for(group: str) -> None:
    """`tox -e lock` updates it after a change."""
    groups = _project()["dependency-groups"]
    lock = tomllib.loads((ROOT / "pylock.toml").read_text(encoding="utf-8"))
    locked = {package["name"] for package in lock["packages"]}

    def asked(name: str) -> list[str]:
        inner = [asked(entry["include-group"]) if isinstance(entry, dict) else [entry] for entry in groups[name]]
        return [line for lines in inner for line in lines]

    names = {re.split(r"[\[<>=;~! ]", line)[0].lower().replace("_", "-") for line in asked(group)}
    assert names - locked == set()


def test_the_readme_has_no_relative_link() -> None:
    """A package index shows it without the other files."""
    found = links((ROOT / "README.md").read_text(encoding="utf-8"))
    assert [link for link in found if not link.target.startswith(("https://", "#"))] == []
    assert any(link.target.startswith(REPOSITORY) for link in found)


def test_the_addresses_of_the_project_are_one() -> None:
    """The metadata, the README's links and the templates agree."""
    urls = _project()["project"]["urls"]
    assert urls["Source"] == REPOSITORY.partition("/blob/")[0]
    assert all(url.startswith(urls["Source"]) or "readthedocs.io" in url for url in urls.values())
    contacts = _workflow(ROOT / ".github" / "ISSUE_TEMPLATE" / "config.yml")["contact_links"]
    assert {contact["url"].split("/security")[0].rstrip("/") for contact in contacts} == {
        urls["Source"],
        urls["Documentation"].rstrip("/"),
    }


def test_the_lower_bounds_of_the_extras_are_what_is_tested() -> None:
    """Each extra allows the releases of `tox -e lowest`, and no older ones; the docs have the same numbers."""
    project = _project()
    pinned = dict(line.split("==") for line in project["dependency-groups"]["lowest"] if "==" in line)
    extras = [line for lines in project["project"]["optional-dependencies"].values() for line in lines]
    bounds = [line.split(">=") for line in [*project["project"]["dependencies"], *extras]]
    assert bounds
    for name, bound in bounds:
        found = {number for pin, number in pinned.items() if pin.partition("[")[0] == name.partition("[")[0]}
        assert {re.sub(r"(\.0)+$", "", number) for number in found} == {re.sub(r"(\.0)+$", "", bound)}, name
    page = (ROOT / "docs" / "frameworks" / "index.md").read_text(encoding="utf-8")
    shown = re.findall(r"^\| `(\w+)` \| \w+ ([\d.]+) \|$", page, re.MULTILINE)
    offered = project["project"]["optional-dependencies"]
    assert dict(shown) == {extra: lines[0].split(">=")[1] for extra, lines in offered.items()}


def test_the_docs_name_the_older_releases_that_are_tested_beside_the_base_install() -> None:
    """`tox -e oldest` has them."""
    group = _project()["dependency-groups"]["oldest"]
    page = (ROOT / "docs" / "frameworks" / "index.md").read_text(encoding="utf-8")
    for name, package in (("Flask", "flask"), ("FastAPI", "fastapi"), ("Starlette", "starlette")):
        (pin,) = [line.partition("==")[2] for line in group if line.startswith(f"{package}==")]
        assert f"{name} {'.'.join(pin.split('.')[:2])}" in page
