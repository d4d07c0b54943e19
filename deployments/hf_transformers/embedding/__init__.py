"""Embeddings by a transformers or sentence-transformers model."""
