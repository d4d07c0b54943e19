"""How the commands talk to the service: its address, requests, event streams, errors."""
