"""Learning from what is said of answers, by the trainers of trl."""
