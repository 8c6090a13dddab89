"""Runs commands at the same time, and ends with 1 if one of them fails: ``python side_by_side.py COMMAND...``.

What each of them prints is shown when it has ended, so it does not mix with what the others print.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor, as_completed


def _run(command: str) -> tuple[str, float, subprocess.CompletedProcess[bytes]]:
    began = time.monotonic()
    ended = subprocess.run(
        shlex.split(command), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    return command, time.monotonic() - began, ended


def main(commands: list[str]) -> int:
    """Run all of them, whatever becomes of any."""
    failed = []
    with ThreadPoolExecutor(len(commands)) as pool:
        for ran in as_completed([pool.submit(_run, command) for command in commands]):
            command, seconds, ended = ran.result()
            print(f"== {command}: exit {ended.returncode} after {seconds:.0f} s", flush=True)
            sys.stdout.buffer.write(ended.stdout)
            sys.stdout.flush()
            if ended.returncode:
                failed.append(command)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
