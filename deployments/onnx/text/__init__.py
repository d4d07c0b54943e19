"""Texts from decoder graphs, token by token."""
