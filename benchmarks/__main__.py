"""``python -m benchmarks`` measures everything, prints the tables, and writes results and plots."""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks import growth, in_process, live_records, plots, report, results, sockets, throughput
from benchmarks.interface import BACKENDS, KINDS
from benchmarks.programs import program
from benchmarks.run import Results, Run
from benchmarks.servers import Servers
from benchmarks.ways import all_peers

#: parts of the run beside the kinds of request, in the order of their measurement
PARTS: Mapping[str, Callable[[Run], Results]] = {
    "throughput": throughput.measure,
    "sockets": sockets.measure,
    **growth.CURVES,
    "live-records": live_records.measure,
    "heartbeats": program("heartbeats"),
    "memory": program("memory"),
    "expensive-bodies": program("expensive_bodies"),
    "request-calls": program("request_calls"),
    "telemetry": program("telemetry"),
}


def main() -> None:
    """Run the chosen parts."""
    options = _options()
    whole = not (options.rows or options.only or options.quick)
    out = options.out or (results.FOLDER if whole else None)
    wanted = options.rows or [*KINDS, *PARTS]
    kinds = tuple(kind for kind in KINDS if kind in wanted)
    parts = {
        **({"rows": in_process.measure} if kinds else {}),
        **{name: PARTS[name] for name in PARTS if name in wanted},
    }
    around = results.circumstances([peer.NAME for peer in all_peers()])
    logging.getLogger().addHandler(logging.NullHandler())  # a framework logs each 409
    started = time.monotonic()
    with Servers() as servers:
        run = Run(servers, kinds, tuple(options.only), options.quick)
        for name, measure in parts.items():
            measured = measure(run)
            if out is not None:
                results.write(out, name, around, measured)
            print(f"\n[{name}: {time.monotonic() - started:.0f} s since the start]", flush=True)
    if out is not None:
        plots.draw(out)
    if out == results.FOLDER:
        report.write()


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    names = [*KINDS, *PARTS]
    parser.add_argument("--rows", type=_list_of(names), metavar="A,B", help=f"only these of {', '.join(names)}")
    parser.add_argument(
        "--only", type=_list_of([*BACKENDS]), default=[], metavar="A,B", help=f"only these of {', '.join(BACKENDS)}"
    )
    parser.add_argument("--quick", action="store_true", help="check that everything runs; the figures mean nothing")
    parser.add_argument(
        "--out", type=Path, help="folder for results and plots; by default only a whole run stores them"
    )
    return parser.parse_args()


def _list_of(names: list[str]) -> Callable[[str], list[str]]:
    def read(text: str) -> list[str]:
        wanted = text.split(",")
        for name in wanted:
            if name not in names:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(names)}")
        return wanted

    return read


if __name__ == "__main__":
    main()
