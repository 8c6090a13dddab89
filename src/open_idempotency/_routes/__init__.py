"""Which policy applies to a request: coverage, rules by path, patterns of paths."""
