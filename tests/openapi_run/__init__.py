"""Schemathesis against a running service: `python -m tests.openapi_run --help`."""
