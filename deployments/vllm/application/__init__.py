"""The layers around vLLM's own OpenAI application, between a client and the engine."""
