"""Decides which calls run next, runs them, and measures what they cost."""
