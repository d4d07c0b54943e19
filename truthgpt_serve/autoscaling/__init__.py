"""How many replicas a model needs, by the work that waits. Serve's controller imports it.

So it imports next to nothing, and neither an engine nor the rest of this package.
"""
