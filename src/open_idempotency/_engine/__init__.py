"""Carries out what the core decides: performers, heartbeat, shutdown, request bodies, the current request."""
