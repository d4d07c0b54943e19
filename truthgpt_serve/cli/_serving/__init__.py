"""Puts what was trained into the Serve file and the service that runs."""
