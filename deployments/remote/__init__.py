"""The family `remote`: relays to another OpenAI-compatible server, under this service's address."""
