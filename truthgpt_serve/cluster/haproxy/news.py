"""What routers say to HAProxy once a second, in the query of their request for its routes.

Works on the lines of the configuration that Ray Serve writes. News have a section of their own:
the rules that take them in are as many as the models, and no other request meets them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlencode

from truthgpt_serve.cluster.haproxy.configuration import (
    ROUTERS,
    UnknownConfigurationError,
    insert,
    section,
    use_first,
)
from truthgpt_serve.cluster.haproxy.dispatch import UNNOTED
from truthgpt_serve.cluster.haproxy.queues import MAX_BODY_BYTES

NEWS_PATH = "/-/routes"
LIMIT_KEY, MODEL_KEY = "direct", "model."
"""In the query: the longest body, and how many requests a model holds."""
_SECTION = "news"
_ROUTES = re.compile(r"^(\s*http-request return status \d+ .*) if routes$")
_TOLD = f"{{ urlp({LIMIT_KEY}) -m found }}"


def news_query(
    max_body_bytes: int, held: Mapping[str, int], more: Mapping[str, str] | None = None
) -> str:
    """Returns the query by which a router says what may go straight to the models.

    Args:
        max_body_bytes: The longest body; 0 for no request at all.
        held: How many requests each model holds, by name.
        more: Further news.
    """
    models = {MODEL_KEY + name: str(number) for name, number in held.items()}
    return urlencode(
        {LIMIT_KEY: str(min(max_body_bytes, MAX_BODY_BYTES)), **models, **(more or {})}
    )


def await_news(lines: list[str]) -> None:
    """Adds the section for news, which answers with Ray's routes, and sends news there.

    Args:
        lines: The configuration, which is changed; `hear` adds rules.

    Raises:
        UnknownConfigurationError: It is not what Ray 2.60 writes.
    """
    start, end = section(lines, ROUTERS)
    routes = [at for at in range(start, end) if _ROUTES.match(lines[at])]
    if len(routes) != 1:
        raise UnknownConfigurationError(f"`{ROUTERS}` does not answer with its routes")
    answer = lines[routes[0]].removesuffix(" if routes")
    lines[routes[0]] += f" !{_TOLD}"
    use_first(lines, ROUTERS, f"use_backend {_SECTION} if routes {_TOLD}")
    lines += [f"backend {_SECTION}", f"    {UNNOTED}", answer]


def hear(lines: list[str], *rules: str) -> None:
    """Adds rules for a router's news, before they are answered."""
    insert(lines, f"backend {_SECTION}", *rules)
