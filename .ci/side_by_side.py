"""Runs commands at the same time, and ends with 1 if one of them fails: ``python side_by_side.py COMMAND...``.

The output of the last command is shown as it comes. The output of each other command is shown when the last one has
ended, so that outputs do not mix; a command that fails is named at once.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor


def _run(command: str, shown: bool) -> tuple[str, int, bytes]:
    began = time.monotonic()
    output = None if shown else subprocess.PIPE
    ended = subprocess.run(
        shlex.split(command), stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, check=False
    )
    outcome = f"== {command}: exit {ended.returncode} after {time.monotonic() - began:.0f} s\n"
    if ended.returncode:
        print(f"\n{outcome}", end="", flush=True)
    return outcome, ended.returncode, ended.stdout or b""


def main(commands: list[str]) -> int:
    """Run all of them, whatever becomes of any."""
    with ThreadPoolExecutor(len(commands)) as pool:
        ran = list(pool.map(_run, commands, [False] * (len(commands) - 1) + [True]))
    for outcome, _, output in ran:
        sys.stdout.buffer.write(outcome.encode() + output)
    failed = [command for command, (_, code, _) in zip(commands, ran, strict=True) if code]
    if failed:
        print(f"failed: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
