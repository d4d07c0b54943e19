"""What decides how much memory a run takes: optimizers and adapters, for texts and images."""
