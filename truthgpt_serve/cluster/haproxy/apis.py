"""Has HAProxy know which API a client's request is of, whose errors have another form.

Works on the lines of the configuration that Ray Serve writes.
"""

from __future__ import annotations

from truthgpt_serve.cluster.haproxy.configuration import CLIENTS, insert
from truthgpt_serve.http.envelope import MESSAGES

PATHS = {"messages": MESSAGES, "v2": "/v2"}
"""Where the routes of each API begin; all others are of OpenAI's."""
_API = "txn.api"
_PREFIX = "^(/models/[^/]+)?"


def name_api(lines: list[str]) -> None:
    """Adds the rules that note it; what asks stands behind them."""
    insert(
        lines,
        CLIENTS,
        *(
            f"http-request set-var({_API}) str({api}) if {{ path_reg {_PREFIX}{path}(/|$) }}"
            for api, path in PATHS.items()
        ),
    )


def is_of(api: str) -> str:
    """Returns HAProxy's condition for requests of an API of `PATHS`."""
    return f"{{ var({_API}) -m str {api} }}"
