"""A redis-py with other private names: the backend falls back to public ones, and warns once."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
import redis
import trustme

from tests.backends.redis.on_redis import server
from tests.topologies import TlsFront

ROOT = Path(__file__).parents[3]
#: the private attributes of redis-py's connections that the backend uses
PARTS = ("_sock", "_reader", "_writer")

_LIFE = """
import asyncio, logging, sys

class Heard(logging.Handler):
    messages = []
    def emit(self, record):
        self.messages.append((record.levelname, record.getMessage()))

logging.getLogger("open_idempotency").addHandler(Heard())

from open_idempotency.backend import Complete, Finished, Leased, Wait
from open_idempotency.backends.redis import RedisBackend
from open_idempotency.conformance.support import claim_of

backend = RedisBackend(sys.argv[1], eviction="ignore")
assert len(Heard.messages) == int(sys.argv[2]), Heard.messages
leased = backend.claim(claim_of(b"sync"))
assert isinstance(leased, Leased), leased
backend.complete(Complete(leased.lease, b"response"))
assert backend.claim(claim_of(b"sync")) == Finished(b"response")
backend.wait(Wait(b"sync", 0.01, 0.01))

async def main():
    asynchronous = backend.to_async()
    async def life(key):
        leased = await asynchronous.claim(claim_of(key))
        assert isinstance(leased, Leased), leased
        await asynchronous.complete(Complete(leased.lease, b"response"))
        assert await asynchronous.claim(claim_of(key)) == Finished(b"response")
    await asyncio.gather(*(life(b"%d" % number) for number in range(20)))
    await asynchronous.wait(Wait(b"0", 0.01, 0.01))
    await asynchronous.close()

asyncio.run(main())
for level, message in Heard.messages:
    print(level, message)
"""


def _renamed(folder: Path, *parts: str) -> dict[str, str]:
    """The environment of a Python process that imports a copy of redis-py with these attributes renamed."""
    installed = Path(redis.__file__).parent
    copy = folder / "redis"
    shutil.copytree(installed, copy, ignore=shutil.ignore_patterns("__pycache__"))
    for module in copy.rglob("*.py"):
        text = module.read_text()
        for part in parts:
            text = re.sub(rf"\b{part}\b", f"_other{part}", text)
        module.write_text(text)
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT / "src"), str(ROOT)))}


def _life(environment: dict[str, str], url: str, warnings: int) -> list[str]:
    """The log of a process that claims, completes and replays."""
    command = [sys.executable, "-W", "error", "-c", _LIFE, url, str(warnings)]
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.splitlines()


@pytest.mark.parametrize("missing", [*((part,) for part in PARTS), PARTS], ids=" ".join)
def test_a_missing_part_is_one_warning(missing: tuple[str, ...], tmp_path: Path, valkey_url: str) -> None:
    """B-10: claims, completions and replays still work, sync and async."""
    (message,) = _life(_renamed(tmp_path, *missing), f"{valkey_url}?prefix={tmp_path.name}", 1)
    assert message.startswith("WARNING ")
    assert f"redis-py {redis.__version__} has no {', '.join(missing)} on its connections" in message


def test_a_redis_py_with_all_parts_is_no_warning(tmp_path: Path, valkey_url: str) -> None:
    """B-10: the same process with an unchanged copy logs nothing."""
    assert _life(_renamed(tmp_path), f"{valkey_url}?prefix={tmp_path.name}", 0) == []


def test_without_a_way_to_forget_certificates_tls_works_and_says_so_once(tmp_path: Path, valkey_url: str) -> None:
    """B-16: with TLS only; such a process has to be restarted after a certificate was renewed."""
    environment = _renamed(tmp_path, "ssl_context")
    assert _life(environment, f"{valkey_url}?prefix={tmp_path.name}", 0) == []
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with server() as plain, TlsFront(plain, context) as front:
        url = f"rediss://localhost:{front.port}?ssl_ca_certs={tmp_path / 'ca.pem'}"
        (message,) = _life(environment, url, 1)
    assert message.startswith("WARNING ")
    assert "has no ssl_context on its connections: after a certificate was renewed" in message


def test_the_contract_holds_without_the_parts(tmp_path: Path) -> None:
    """B-10, B-12: the contract suite for claims, completions and replays, on one server."""
    suite = "tests/backends/test_contract.py::TestValkey"
    options = ("-q", "-p", "no:cacheprovider", "-n", "0", "-k", "claim or complet or response or finished")
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", *options, suite],
        env=_renamed(tmp_path, *PARTS),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stdout[-4000:]
    found = re.search(r"(\d+) passed", ended.stdout)
    assert found is not None, ended.stdout[-1000:]
    assert int(found[1]) > 100
