"""All that knows Ray's cluster, HAProxy and processes."""
