"""Names and addresses that several parts know: where a service is, variables, Ray's headers."""

from __future__ import annotations

KEY_VARIABLE = "TRUTHGPT_API_KEY"
"""Environment variable with the API key of who asks."""
DEFAULT_PORT = 8000
"""Ray Serve's own default for `http_options.port`."""
DEFAULT_URL = f"http://127.0.0.1:{DEFAULT_PORT}"
OUTLIVES_VARIABLE = "TRUTHGPT_HAPROXY_OUTLIVES_MANAGER"
"""Environment variable of a manager of Ray Serve's that takes over an HAProxy which it finds."""
RAY_HEADERS = (
    *("x-request-id", "x-session-id", "serve_multiplexed_model_id"),
    *("x-request-timeout-seconds", "x-request-disconnect-disabled"),
)
"""Headers of requests that Ray Serve reads itself; it fails with 500 on one that is not ASCII."""
