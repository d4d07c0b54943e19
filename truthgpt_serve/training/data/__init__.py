"""Reads training data: rows with their places, whatever file they come from.

`datasets` is imported only for data sets of the Hub.
"""

from __future__ import annotations

from truthgpt_serve.training.data.bad_rows import BadRow, BadRows
from truthgpt_serve.training.data.fingerprint import data_fingerprint
from truthgpt_serve.training.data.inventory import Inventory
from truthgpt_serve.training.data.rows import Row
from truthgpt_serve.training.data.sources import read_rows

__all__ = ["BadRow", "BadRows", "Inventory", "Row", "data_fingerprint", "read_rows"]
