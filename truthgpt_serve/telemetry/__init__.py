"""What is told of single requests: lines of the access log, and spans of traces."""
