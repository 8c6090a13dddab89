"""``python -m open_idempotency.conformance URL``: the HTTP runner, which needs the base install only."""

from __future__ import annotations

import sys

from open_idempotency.conformance.http.cli import main

if __name__ == "__main__":
    sys.exit(main())
