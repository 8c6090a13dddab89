"""Unit tests: the pure core, the engine, the stages and the adapters, without any server."""
