"""``python -m tests.simulation SEED``: print one history, line by line. ``FIRST-LAST``: look for seeds that fail.

``--without GUARD`` removes one guard, as tests/simulation/test_guards.py does.
"""

from __future__ import annotations

import argparse
import sys

from tests.simulation.guards import WITHOUT
from tests.simulation.history import History
from tests.simulation.loop import Failure
from tests.simulation.plans import plan
from tests.simulation.site import Site


def main() -> int:
    """The exit code: 1 if a seed failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.simulation", description=__doc__)
    parser.add_argument("seeds", help="SEED, or FIRST-LAST")
    parser.add_argument("--without", choices=sorted(WITHOUT))
    chosen = parser.parse_args()
    first, _, last = chosen.seeds.partition("-")
    site = WITHOUT[chosen.without] if chosen.without else Site
    if last:
        return _search(range(int(first), int(last) + 1), site)
    made = plan(int(first))
    sys.stdout.write(f"{made}\n")
    try:
        History(made, site, lambda line: sys.stdout.write(f"{line}\n") and None).run()
    except Failure as failure:
        sys.stdout.write(f"{failure}\n")
        return 1
    sys.stdout.write("all invariants hold\n")
    return 0


def _search(seeds: range, site: type[Site]) -> int:
    failed = 0
    for seed in seeds:
        try:
            History(plan(seed), site).run()
        except Failure as failure:
            failed += 1
            sys.stdout.write(f"{plan(seed)}\n    {failure}\n")
    sys.stdout.write(f"{len(seeds)} histories, {failed} failed\n")
    return min(failed, 1)


if __name__ == "__main__":
    sys.exit(main())
