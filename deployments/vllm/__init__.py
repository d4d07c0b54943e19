"""The vLLM family: language models on vLLM's own engine and its own OpenAI application."""
