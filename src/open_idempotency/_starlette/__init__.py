"""The Starlette middleware's parts; users import ``open_idempotency.starlette``."""
