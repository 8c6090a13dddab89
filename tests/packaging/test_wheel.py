"""The built wheel: it has everything that is needed at run time, and requires nothing else."""

from __future__ import annotations

import email
import email.message
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

import open_idempotency

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from the tree."""
    target = tmp_path_factory.mktemp("wheel")
    built = list(WheelBuilder(str(ROOT)).build(directory=str(target), versions=["standard"]))
    return zipfile.ZipFile(built[0])


def metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    """The wheel's METADATA."""
    name = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


def test_every_file_of_the_package_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    """Lua and SQL are files of their own; ``py.typed`` is shipped."""
    files = {
        path.relative_to(SOURCE).as_posix()
        for path in (SOURCE / "open_idempotency").rglob("*")
        if path.is_file() and not any(part.startswith((".", "__pycache__")) for part in path.parts)
    }
    assert files - set(wheel.namelist()) == set()
    assert "open_idempotency/py.typed" in files


@pytest.mark.parametrize("kind", [".lua", ".sql"])
def test_scripts_and_statements_are_in_the_wheel(wheel: zipfile.ZipFile, kind: str) -> None:
    assert any(name.endswith(kind) for name in wheel.namelist())


def test_nothing_but_the_package_is_in_the_wheel(wheel: zipfile.ZipFile) -> None:
    """Tests, examples and benchmarks are not shipped."""
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert tops == {"open_idempotency", next(top for top in tops if top.endswith(".dist-info"))}


def test_the_base_install_depends_on_http_sf_alone(wheel: zipfile.ZipFile) -> None:
    """http-sf parses RFC 9651."""
    required = metadata(wheel).get_all("Requires-Dist") or []
    base = [line for line in required if "extra ==" not in line]
    assert [line.partition(">")[0].strip() for line in base] == ["http-sf"]


def test_the_extras_are_those_of_the_issue(wheel: zipfile.ZipFile) -> None:
    """Extras."""
    extras = metadata(wheel).get_all("Provides-Extra") or []
    assert {"redis", "starlette", "fastapi", "flask", "django"} <= set(extras)


def test_the_oldest_python_and_the_licence_are_reported(wheel: zipfile.ZipFile) -> None:
    """Python 3.10 and later."""
    reported = metadata(wheel)
    assert reported["Requires-Python"] == ">=3.10"
    assert reported["License-Expression"] == "Apache-2.0"
    assert any(name.endswith("licenses/LICENSE") for name in wheel.namelist())


def test_the_version_of_the_wheel_is_the_packages_own(wheel: zipfile.ZipFile) -> None:
    """The two places of the version agree."""
    assert metadata(wheel)["Version"] == open_idempotency.__version__
