"""The routes for text: completions and chat."""
