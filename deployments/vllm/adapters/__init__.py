"""LoRA adapters: checks of their files, and loading into a started engine."""
