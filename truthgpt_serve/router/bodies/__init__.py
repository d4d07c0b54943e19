"""Reads request bodies as far as their model, and sends them on."""
