"""What the demo and the crash tests need from the shop: a journal of effects, and a way to die at a chosen moment.

Your application needs no such module. It is here so that the shop, the provider and the APIs need one decorator for it,
and nothing else.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

#: where the shop, the provider and this journal keep their files
FOLDER = Path(os.environ.get("SHOP_FOLDER", "."))

_JOURNAL = "journal.jsonl"


@contextmanager
def effect(name: str) -> Generator[None, None, None]:
    """Decorates an effect that must not happen twice: each call that succeeds appends a line to the journal.

    With ``SHOP_DIE=before-charge`` in the environment the process is killed before the effect named ``charge``, when
    the stages before it are recorded; with ``after-charge`` right after it, when its own stage is not recorded yet.
    """
    _die_at(f"before-{name}")
    yield
    line = json.dumps({"effect": name, "worker": os.getpid()}) + "\n"
    with (FOLDER / _JOURNAL).open("a") as journal:
        journal.write(line)
    _die_at(f"after-{name}")


def _die_at(moment: str) -> None:
    if os.environ.get("SHOP_DIE") == moment:
        # As a power cut or the kernel's out-of-memory killer would: no handler runs, nothing is cleaned up.
        os.kill(os.getpid(), signal.SIGKILL)


def read_journal(folder: Path) -> list[dict[str, Any]]:
    """The effects that happened, in order, each with the process id of its worker."""
    path = folder / _JOURNAL
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
