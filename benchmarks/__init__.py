"""Benchmarks of the package, compared with the least code that could do its work; see README.md beside this file."""
