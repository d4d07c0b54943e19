"""Who waits for a place at a full model, and who may come again when."""
