"""Frameworks without an adapter of their own.

The pages docs/frameworks test that they run, replay, refuse and resume.
"""
