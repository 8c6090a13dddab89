"""Event loops, threads, processes and forks. Nothing here knows of idempotency."""
