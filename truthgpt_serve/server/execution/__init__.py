"""Runs a model's calls in threads, and carries what they yield to the event loop."""
