"""A page on training runs: curves, results and settings, in one file without scripts."""

from truthgpt_serve.training.report.page import write_report

__all__ = ["write_report"]
