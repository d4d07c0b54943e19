"""Learning what texts mean: their classes, and which of them are alike."""
