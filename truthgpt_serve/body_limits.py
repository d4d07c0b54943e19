"""The limits of request bodies and uploads: their ceilings and defaults, and the 413's words.

The settings are in `config/router.py`, `config/serving.py`, `config/images.py` and
`config/playground.py`.

| setting | bounds | checked in |
|---|---|---|
| the router's `max_body_bytes` | requests through the router | `router/bodies/request_body.py` |
| `serving.max_body_bytes` | a request to one model | `server/arriving_body.py` |
| `serving.images.max_upload_bytes` | an image request and its files | `server/images/routes.py` |
| the playground's `max_upload_bytes` | a recording | `playground/uploads.py` |

What a compressed body may become is bounded in `http/codings/`.
"""

from __future__ import annotations

from truthgpt_serve.errors import SlowRequestError, TooLargeError

MIB = 2**20
MAX_BODY_BYTES = 1024 * MIB
"""The largest request body that any setting can allow, and the default of a model's."""
ROUTER_BODY_BYTES = 64 * MIB
IMAGE_UPLOAD_BYTES = 64 * MIB
RECORDING_BYTES = 25 * MIB
STALL_S = 25.0
"""The longest pause between two pieces of a body; HAProxy's, `timeout client`, is 30 s: it answers
in other words, and knows neither the limit nor the form of the API's errors.
"""
HURRY_BYTES = 16 * 1024
"""While others wait for the model, a body must come this fast, in bytes a second (128 kbit/s)."""
HURRY_S = 3.0
"""How far it may fall behind that, as when a connection's packets are lost."""
LATE_S = 0.1
"""A look at bodies that comes later than this sees nothing: the event loop was busy, and what has
come meanwhile is taken first.
"""
PLACE_BYTES = 256 * 1024
"""The pace of a body whose request has its place already: the longest ones, which nothing keeps."""


def body_too_large(max_bytes: int, setting: str) -> TooLargeError:
    """Returns the refusal of a body.

    Args:
        max_bytes: The limit.
        setting: What sets it, such as `serving.max_body_bytes` in backticks.
    """
    return TooLargeError(
        f"the request body is larger than {max_bytes} bytes, the limit that {setting} sets"
    )


def slow_body(limit_s: float) -> SlowRequestError:
    """Returns the refusal of a body that was not whole after `limit_s` seconds."""
    return SlowRequestError(f"the request body did not arrive within {limit_s:g} s")


def stalled_body(pause_s: float) -> SlowRequestError:
    """Returns the refusal of a body of which nothing came for `pause_s` seconds."""
    return SlowRequestError(f"no data of the request body arrived for {pause_s:g} s")


def hurried_body(bytes_a_second: int = HURRY_BYTES) -> SlowRequestError:
    """Returns the refusal of a body that was too slow while others waited."""
    return SlowRequestError(
        f"the request body arrived at less than {bytes_a_second // 1024} KiB/s, while other "
        "requests waited or many bodies arrived slowly"
    )
