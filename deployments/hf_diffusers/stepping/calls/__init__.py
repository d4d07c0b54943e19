"""The calls of batchable modules: which may share a forward, and how they are joined and split."""
