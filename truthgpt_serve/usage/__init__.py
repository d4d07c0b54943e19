"""What requests use: counted where the work is done, kept, and reported by key, model and day."""
