"""vLLM's own HTTP tests, against its own server and through the router; see `__main__`."""
