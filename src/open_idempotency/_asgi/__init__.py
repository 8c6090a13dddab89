"""Parts of the ASGI adapter."""
