"""The multiprocess mode of prometheus_client, under a real gunicorn whose workers are forked with the application."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import httpx
import pytest
from prometheus_client import CollectorRegistry, multiprocess

from tests.http.sites import poll
from tests.unit.telemetry.reading import outcomes, samples

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gunicorn needs fork")

WORKERS, REQUESTS = 2, 12
PATIENCE = 60.0
APP = """
import os
from flask import Flask
from open_idempotency.flask import Idempotency
from open_idempotency.telemetry import prometheus

app = Flask("shop")
Idempotency(app, os.environ["SHOP_RECORDS"], on_event=prometheus(), scope="anonymous")

@app.post("/orders/<customer>")
def order(customer):
    return str(os.getpid())
"""
CONF = """
from prometheus_client import multiprocess

def child_exit(server, worker):
    multiprocess.mark_process_dead(worker.pid)
"""


class Shop(NamedTuple):
    """A running server: its address, and the folder of its metrics."""

    url: str
    folder: Path

    def read(self) -> CollectorRegistry:
        """The metrics of all workers, as a metrics page collects them."""
        registry = CollectorRegistry()
        multiprocess.MultiProcessCollector(registry, str(self.folder))
        return registry


@pytest.fixture
def shop(tmp_path: Path) -> Iterator[Shop]:
    folder = tmp_path / "metrics"
    folder.mkdir()
    (tmp_path / "shop.py").write_text(APP)
    (tmp_path / "conf.py").write_text(CONF)
    listener = socket.create_server(("127.0.0.1", 0))
    command = [sys.executable, "-m", "gunicorn", "--config", "conf.py", "--preload", "--workers", str(WORKERS)]
    environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(folder)}
    environ["SHOP_RECORDS"] = f"sqlite:///{tmp_path}/records.db"
    server = subprocess.Popen(
        [*command, "--bind", f"fd://{listener.fileno()}", "shop:app"],
        cwd=tmp_path,
        env=environ,
        pass_fds=[listener.fileno()],
    )
    try:
        yield Shop(f"http://127.0.0.1:{listener.getsockname()[1]}", folder)
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait(PATIENCE)
        listener.close()


def test_the_counts_of_all_workers_are_one_sum(shop: Shop) -> None:
    """P-32: whichever worker served a request; afterwards the gauge is 0 again."""
    pids: set[str] = set()
    sent = 0
    with httpx.Client(base_url=shop.url, timeout=PATIENCE, trust_env=False, headers={"connection": "close"}) as client:
        while len(pids) < WORKERS or sent < REQUESTS:
            key = {"idempotency-key": str(uuid4())}
            first, again = client.post("/orders/7", headers=key), client.post("/orders/7", headers=key)
            assert again.headers["idempotent-replayed"] == "true"
            assert first.text == again.text
            pids.add(first.text)
            sent += 1
            assert sent < 500, "one worker serves all requests"
    counted = {name: number for (name, route, _), number in outcomes(shop.read()).items() if "<customer>" in route}
    assert counted == {"claimed": sent, "completed": sent, "replayed": sent}
    calls = samples(shop.read(), "idempotency_backend_call_duration_seconds_count")
    assert calls == {(("verb", "claim"),): 2 * sent, (("verb", "complete"),): sent}
    poll(lambda: samples(shop.read(), "idempotency_live_attempts") == {})
