"""The parts of ``idem``: stages, their values, and responses in the application's own transaction."""
