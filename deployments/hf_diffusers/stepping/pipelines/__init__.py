"""Runs stock pipelines one job each, with proxies in place of their modules."""
