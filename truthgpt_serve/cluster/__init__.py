"""Ray's cluster, HAProxy and processes."""
