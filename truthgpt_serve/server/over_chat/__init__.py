"""OpenAI's Responses API and Anthropic's Messages API, translated onto the chat route."""
