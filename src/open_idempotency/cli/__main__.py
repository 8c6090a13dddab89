"""``python -m open_idempotency.cli``: the command ``open-idempotency``, if its script is not on the path."""

from __future__ import annotations

import sys

from open_idempotency.cli import main

if __name__ == "__main__":
    sys.exit(main())
