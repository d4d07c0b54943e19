"""The commands about what a training run has made."""
