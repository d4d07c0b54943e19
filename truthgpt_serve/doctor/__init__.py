"""Finds out what of the service works on this machine, each thing by a real call.

Imports no engine: what a family offers is tried by the family, in a process of its own.
"""

from __future__ import annotations

from truthgpt_serve.doctor.diagnosis import Diagnosis, Group, diagnose

__all__ = ["Diagnosis", "Group", "diagnose"]
