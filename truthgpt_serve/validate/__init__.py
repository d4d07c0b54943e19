"""Checks files before anything is started, and describes them to editors and readers.

Imports no engine, except for `machine=True`, and starts nothing.
"""

from __future__ import annotations

from truthgpt_serve.validate.report import CheckedModel, Report
from truthgpt_serve.validate.service import validate_file

__all__ = ["CheckedModel", "Report", "validate_file"]
