"""Pages on runs: `report.html`, which compares them, and the model card of a result.

Reads what a run has written; imports no library that trains.
"""

from truthgpt_serve.training.report.card import write_card
from truthgpt_serve.training.report.page import write_report

__all__ = ["write_card", "write_report"]
