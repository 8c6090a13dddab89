"""Shared by several suites: servers, browsers."""
