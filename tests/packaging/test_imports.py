"""The cost of imports: the package loads nothing optional, and every module can be imported by itself."""

from __future__ import annotations

import importlib
import json
import pkgutil
import subprocess
import sys
from collections.abc import Sequence

import pytest

import open_idempotency

#: optional or slow to import: the package and its core must import none of them
OPTIONAL = {
    "asyncio", "trio", "anyio", "redis", "sqlite3", "pydantic", "starlette", "fastapi", "flask", "werkzeug", "django",
    "sqlalchemy", "cryptography", "prometheus_client", "opentelemetry", "orjson", "multiprocessing",
    "tempfile", "ssl", "socket",
}  # fmt: skip
#: packages outside of the base install; a module may load only its own ones (``ALLOWED``)
FRAMEWORKS = (
    "redis",
    "starlette",
    "fastapi",
    "flask",
    "django",
    "trio",
    "pydantic",
    "anyio",
    "cryptography",
    "opentelemetry",
    "prometheus_client",
    "psycopg",
    "sqlalchemy",
)
ALLOWED = {
    # redis imports cryptography and OpenTelemetry by itself where they are installed
    "open_idempotency.backends.redis": {"redis", "cryptography", "opentelemetry"},
    "open_idempotency.backends.django_orm": {"django"},
    "open_idempotency.backends.postgres": {"psycopg"},
    "open_idempotency.backends._shared.psycopg_waits": {"psycopg"},
    "open_idempotency.backends.sqlalchemy": {"sqlalchemy"},
    "open_idempotency.ledger.on_django": {"django"},
    "open_idempotency.ledger.on_psycopg": {"psycopg"},
    "open_idempotency.ledger.on_sqlalchemy": {"sqlalchemy"},
    "open_idempotency.starlette": {"starlette", "anyio"},
    # FastAPI imports OpenTelemetry by itself too
    "open_idempotency.fastapi": {"fastapi", "starlette", "anyio", "pydantic", "opentelemetry"},
    "open_idempotency.flask": {"flask"},
    "open_idempotency._flask": {"flask"},
    "open_idempotency._starlette": {"starlette", "anyio"},
    "open_idempotency.django": {"django"},
    "open_idempotency._engine.cancellation_on_trio": {"trio"},
    "open_idempotency._runtime.on_trio": {"trio"},
    "open_idempotency.telemetry._opentelemetry": {"opentelemetry"},
    "open_idempotency.telemetry._prometheus": {"prometheus_client"},
}
#: loaded by an installed server or framework, or run as programs; not for import
PROGRAMS = {"open_idempotency.__main__"}
#: Django reads its settings while these are imported
NEEDS_SETTINGS = "open_idempotency.django"
# the contract suite needs pytest
SUITE = "open_idempotency.conformance"

MODULES = sorted(
    module.name
    for module in pkgutil.walk_packages(open_idempotency.__path__, "open_idempotency.")
    if module.name not in PROGRAMS
)


def group_of(module: str) -> str:
    """The part of the package of a module: one with an extra, a subpackage, or the top."""
    for prefix in (*ALLOWED, SUITE):
        if f"{module}.".startswith(f"{prefix}."):
            return prefix
    parts = module.split(".")
    return ".".join(parts[:2]) if len(parts) > 2 else parts[0]


def loaded_by(statement: str) -> set[str]:
    """The top-level modules that a statement loads in a new interpreter."""
    code = f"{statement}\nimport json, sys\nprint(json.dumps(sorted({{m.partition('.')[0] for m in sys.modules}})))"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return set(json.loads(ended.stdout))


# A child for each module: each starts from the same interpreter, without paying for its start. That has imported the
# package, as Python does before any module of it.
EACH = """
import json, os, sys, traceback
import open_idempotency
for name in sys.argv[1:]:
    sys.stdout.flush()
    if os.fork() == 0:
        try:
            __import__(name)
            print(json.dumps([name, sorted({m.partition(".")[0] for m in sys.modules})]), flush=True)
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if os.wait()[1]:
        sys.exit(f"{name} cannot be imported by itself")
"""


def loaded_by_each(setup: str, modules: Sequence[str]) -> dict[str, set[str]]:
    """For each module, what importing it alone loads after ``setup``."""
    command = [sys.executable, "-c", f"{setup}\n{EACH}", *modules]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [name for name, _ in lines] == list(modules)
    return {name: set(loaded) for name, loaded in lines}


@pytest.fixture(scope="module")
def bare() -> set[str]:
    """What an interpreter loads at its start, with ``json`` and the environment's start-up files."""
    return loaded_by("")


def test_the_package_loads_no_framework_client_library_or_event_loop(bare: set[str]) -> None:
    """``__init__`` imports nothing optional."""
    assert (loaded_by("import open_idempotency") - bare) & OPTIONAL == set()


def test_an_engine_over_the_memory_backend_loads_no_framework_or_event_loop(bare: set[str]) -> None:
    """A sync engine needs neither."""
    engine = "from open_idempotency._engine.engine import Engine\nEngine('memory://', None, {}, threads=True)"
    assert (loaded_by(engine) - bare) & OPTIONAL == set()


def test_asking_for_the_running_loop_loads_none(bare: set[str]) -> None:
    """A sync stage in a process without an event loop."""
    ask = "from open_idempotency._runtime.loops import current_library\nassert current_library() is None"
    assert (loaded_by(ask) - bare) & {"asyncio", "trio"} == set()


@pytest.mark.parametrize("group", sorted({group_of(name) for name in MODULES} - {NEEDS_SETTINGS, SUITE}))
def test_each_module_can_be_imported_by_itself_and_loads_no_other_framework(group: str) -> None:
    """Backends and adapters never import each other; there is no import cycle."""
    # The packages that a group may load are loaded once for the group, to save time.
    setup = "".join(f"import {name}\n" for name in ALLOWED.get(group, ()))
    loaded = loaded_by_each(setup, [name for name in MODULES if group_of(name) == group])
    surplus = {name: (frameworks & set(FRAMEWORKS)) - ALLOWED.get(group, set()) for name, frameworks in loaded.items()}
    assert {name: names for name, names in surplus.items() if names} == {}


def test_each_django_module_can_be_imported_by_itself_once_there_are_settings() -> None:
    """The modules that users import."""
    apps = [*(f"django.contrib.{name}" for name in ("contenttypes", "auth", "admin")), "open_idempotency.django"]
    settings = f"INSTALLED_APPS={apps}, IDEMPOTENCY_BACKEND='memory://'"
    setup = f"import django\nfrom django.conf import settings\nsettings.configure({settings})\ndjango.setup()"
    loaded = loaded_by_each(setup, [name for name in MODULES if group_of(name) == NEEDS_SETTINGS])
    # REST framework imports psycopg by itself where it is installed
    loaded[f"{NEEDS_SETTINGS}.spectacular"].discard("psycopg")
    surplus = {name: frameworks & {*FRAMEWORKS} - {"django"} for name, frameworks in loaded.items()}
    assert {name: names for name, names in surplus.items() if names} == {}


@pytest.mark.parametrize("name", open_idempotency.__all__)
def test_every_public_name_is_there_and_documented(name: str) -> None:
    """Every public name has a docstring."""
    public = getattr(open_idempotency, name)
    assert (public.__doc__ or type(public).__doc__ or "").strip()


@pytest.mark.parametrize("name", ["idem", "IdempotencyPolicy", "open_backend"])
def test_the_names_that_users_import_are_public(name: str) -> None:
    """These names must not change."""
    assert name in open_idempotency.__all__


ADAPTERS: Sequence[tuple[str, Sequence[str]]] = [
    ("open_idempotency.asgi", ["IdempotencyMiddleware"]),
    ("open_idempotency.wsgi", ["IdempotencyMiddleware"]),
    ("open_idempotency.starlette", ["IdempotencyMiddleware"]),
    ("open_idempotency.flask", ["Idempotency", "idempotent", "exempt"]),
]


@pytest.mark.parametrize(("module", "names"), ADAPTERS, ids=[row[0] for row in ADAPTERS])
def test_the_names_that_users_import_are_in_each_adapter(module: str, names: Sequence[str]) -> None:
    """These names must not change."""
    adapter = importlib.import_module(module)
    assert [name for name in names if not hasattr(adapter, name)] == []


def test_the_names_that_users_import_are_in_the_django_adapter() -> None:
    """These names must not change. In a separate process, since settings are made once."""
    names = "IdempotencyMiddleware, idempotent, exempt"
    assert "django" in loaded_by(
        "from django.conf import settings\nsettings.configure(IDEMPOTENCY_BACKEND='memory://')\n"
        f"from open_idempotency.django import {names}"
    )


def test_all_modules_were_found() -> None:
    """The tests above depend on the list of modules."""
    assert {"open_idempotency.idem", "open_idempotency._core.decisions", "open_idempotency.backends.redis.backend"} < {
        *MODULES
    }


#: an interpreter in which one module cannot be imported, and says so in its library's words
REFUSING = """
import sys
class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            raise ImportError({words!r})
sys.meta_path.insert(0, Refusing())
"""


def _said(code: str, module: str, words: str) -> str:
    command = [sys.executable, "-c", REFUSING.format(module=module, words=words) + code]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.mark.parametrize(
    ("url", "module", "words", "hint"),
    [
        ("postgresql://h/x", "psycopg.pq", "no pq wrapper available.", "pip install 'psycopg[binary]'"),
        (
            "sqlalchemy+sqlite:///x.db",
            "sqlalchemy.ext.asyncio",
            "The SQLAlchemy asyncio module requires that the Python 'greenlet' library is installed",
            "pip install 'open-idempotency[sqlalchemy]'",
        ),
    ],
)
def test_a_library_that_lacks_something_of_its_own_is_reported_with_what_to_do(
    url: str, module: str, words: str, hint: str
) -> None:
    """Bad input: a missing extra names the install command, even if only a dependency is missing."""
    code = f"""
from open_idempotency import ConfigurationError, open_backend
try:
    open_backend({url!r})
except ConfigurationError as error:
    print(type(error).__name__, error)
"""
    said = _said(code, module, words)
    assert said.startswith("MissingExtra")
    assert hint in said


def test_the_ledger_takes_a_session_where_awaited_ones_cannot_be_imported() -> None:
    """S-05: SQLAlchemy without greenlet."""
    code = """
from sqlalchemy import create_engine
from sqlalchemy.orm import Session
from open_idempotency.ledger.transactions import transaction_of
engine = create_engine("sqlite://")
with Session(engine) as session:
    print(transaction_of(session).dialect.name)
engine.dispose()
"""
    assert _said(code, "sqlalchemy.ext.asyncio", "no greenlet").strip() == "sqlite"
