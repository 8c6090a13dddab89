"""The one command of the comparison: ``python -m benchmarks.comparison`` runs the same scenarios on every peer.

It takes under ten minutes on two cores, stores ``results/comparison.json`` and fills in ``docs/comparison.md``. A run
of some subjects only prints its verdicts and stores nothing, unless ``--out`` names a folder.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from benchmarks import report, results
from benchmarks.comparison.rig import Rig
from benchmarks.comparison.scenarios import SCENARIOS, verdict
from benchmarks.comparison.subjects import SUBJECTS, Subject

#: subjects at the same time: nearly all of their time is waiting
_TOGETHER = 8


def ask(subject: Subject, names: list[str]) -> dict[str, Any]:
    """Run all scenarios, or those that are named, on one subject."""
    start, verdicts = time.monotonic(), dict[str, str]()
    with Rig(subject) as rig:
        for scenario in SCENARIOS:
            if not names or scenario.name in names:
                verdicts[scenario.name] = verdict(scenario, rig)
    found = {name: getattr(subject, name) for name in ("package", "framework", "backend")}
    shown = "".join(f"\n  {name}: {text}" for name, text in verdicts.items())
    print(f"{subject.label}, {subject.backend} ({time.monotonic() - start:.0f} s){shown}", flush=True)
    return {**found, "version": version(subject.package), "verdicts": verdicts}


def main() -> None:
    """Run, print and store."""
    options = _options()
    chosen = [subject for subject in SUBJECTS if not options.only or subject.package in options.only]
    for subject in chosen:
        _check_installed(subject)
    with ThreadPoolExecutor(_TOGETHER) as threads:
        rows = list(threads.map(lambda subject: ask(subject, options.scenarios), chosen))
    whole = not (options.only or options.scenarios)
    out = options.out or (results.FOLDER if whole else None)
    if out is not None:
        around = results.circumstances([subject.package for subject in chosen], "python -m benchmarks.comparison")
        results.write(out, "comparison", around, rows)
    if out == results.FOLDER:
        report.write()


def _check_installed(subject: Subject) -> None:
    try:
        version(subject.package)
    except PackageNotFoundError:
        raise SystemExit(
            f"{subject.package} is not installed: pip install --group compare, or tox -e compare"
        ) from None


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comparison", description=__doc__)
    packages = sorted({subject.package for subject in SUBJECTS})
    names = [scenario.name for scenario in SCENARIOS]
    parser.add_argument("--only", nargs="+", choices=packages, default=[], metavar="PACKAGE", help=", ".join(packages))
    parser.add_argument("--scenarios", nargs="+", choices=names, default=[], metavar="NAME", help=", ".join(names))
    parser.add_argument("--out", type=Path, help="where the JSON goes; by default that of a whole run is stored")
    return parser.parse_args()


if __name__ == "__main__":
    main()
