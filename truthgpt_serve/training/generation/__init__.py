"""What a model makes of `training.samples` while it learns: what it has learned so far."""
