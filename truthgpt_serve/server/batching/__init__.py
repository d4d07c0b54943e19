"""Dynamic batching: calls that wait together run as one."""
