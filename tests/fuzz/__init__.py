"""Seeded bad requests against a running service: `python -m tests.fuzz --help`."""
