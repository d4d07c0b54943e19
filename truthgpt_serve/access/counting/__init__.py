"""Counts of what keys have used in a minute and of what runs now: of one machine, or of several."""
