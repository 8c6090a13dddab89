"""Frameworks without an adapter of their own. That they run, replay, refuse and resume is tested by docs/frameworks."""
