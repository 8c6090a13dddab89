"""The Flask extension's parts; users import ``open_idempotency.flask``."""
