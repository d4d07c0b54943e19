"""Text generation by a transformers model, with continuous batching."""
