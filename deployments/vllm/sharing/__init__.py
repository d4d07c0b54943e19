"""Requests with many texts take turns with those of others, text by text."""
