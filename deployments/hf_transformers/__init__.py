"""The family `hf-transformers`: texts, embeddings and pipelines of transformers."""
