"""The command ``open-idempotency`` for operators: find a key, see what is stuck, free it.

Exit codes are those of ``operations.ExitCode``: 0 done, 2 wrong usage, and one for each kind of refusal, with the
reason on standard error. Standard output has only the requested data.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from open_idempotency.cli.context import Context
from open_idempotency.cli.parser import parser_of, run


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code. If that is not 0, the reason is on standard error.

    ``arguments``: by default ``sys.argv[1:]``. Wrong usage ends the process with 2, as ``argparse`` does.
    """
    options = parser_of().parse_args(arguments)
    return run(options, Context(options, sys.stdout, sys.stderr))
