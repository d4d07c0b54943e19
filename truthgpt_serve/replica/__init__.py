"""A replica: the Serve deployment classes, and what a model's replica says of its work."""
