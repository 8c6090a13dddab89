"""What ``idem`` is made of: stages, their values, and responses in the application's own transaction."""
