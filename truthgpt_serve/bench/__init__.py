"""Measures any server with OpenAI's API under load: `truthgpt bench`."""
