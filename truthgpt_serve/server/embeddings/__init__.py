"""The route for embeddings."""
