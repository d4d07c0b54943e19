"""Starts and supervises the service on one machine: what `make serve` and `make stop` run."""
