"""Kills and stops each kind of process under load: `python -m benchmarks.chaos --help`."""
