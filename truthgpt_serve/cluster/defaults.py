"""Where a service is and by which variable it is given a key, where nothing else is said."""

from __future__ import annotations

KEY_VARIABLE = "TRUTHGPT_API_KEY"
"""Environment variable with the API key of who asks."""
DEFAULT_PORT = 8000
"""Ray Serve's own default for `http_options.port`."""
DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}"
