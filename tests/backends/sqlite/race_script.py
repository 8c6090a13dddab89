"""A separate process for the race test: ``race_script.py URL``; claims when stdin ends, prints the types of results."""

from __future__ import annotations

import os
import sys

from open_idempotency.backend import Claim
from open_idempotency.backends.registry import open_backend

backend = open_backend(sys.argv[1])
sys.stdout.write("ready\n")
sys.stdout.flush()
sys.stdin.read()
for number in range(20):
    result = backend.claim(Claim(b"race-%d" % number, b"fingerprint", os.urandom(16), 30.0, 600.0))
    sys.stdout.write(f"{type(result).__name__}\n")
backend.close()
