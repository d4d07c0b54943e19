"""The configuration of the playground, which is the `args` of its entry in a Serve file."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field

from truthgpt_serve.body_limits import MAX_BODY_BYTES, RECORDING_BYTES
from truthgpt_serve.config.base import (
    NonNegativeNumber,
    Refusal,
    Seconds,
    Section,
    read_scientific,
    refuse,
    show_value,
)

_ADDRESS = re.compile(r"https?://(\[[0-9a-fA-F:.]+\]|[^/?#@:\s\[\]]+)(:\d{1,5})?(/[^?#@\s]*)?")
_EXAMPLE = "write it like http://models.example.com:8000"


def _check_address(value: str) -> str:
    if _ADDRESS.fullmatch(value) is None:
        # Not the value: it may have a password in it.
        shown = show_value(value) if "@" not in value else "it"
        raise refuse([Refusal("", f"{shown} is not the address of a service", _EXAMPLE)])
    return value.rstrip("/").removesuffix("/v1")


class PlaygroundConfig(Section):
    """Address and limits of the playground."""

    base_url: Annotated[str, AfterValidator(_check_address)] | None = None
    """Address of the service that the pages use, such as `http://models.example.com:8000`; null:
    the service that the playground belongs to."""

    cpus: NonNegativeNumber = 0.1
    """CPU cores that Ray reserves. It bounds nothing; with 0 the playground always finds room."""

    keep_s: Annotated[float, Field(ge=30), BeforeValidator(read_scientific)] | None = 600
    """Seconds that the playground's process stays after the last page was closed. There is none
    before the first visit, which starts it: that saves 100 MB. Null keeps it always. Serve learns
    of open pages within some 20 s; with less it would end while one is open."""

    max_ongoing_requests: Annotated[int, Field(ge=16, le=65536)] = 512
    """Requests at the same time. An open page holds two: one that says it is open, one for news."""

    max_queued_requests: Annotated[int, Field(ge=1, le=65536)] = 64
    """Requests that wait, in each proxy; beyond it a browser gets 429."""

    max_running: Annotated[int, Field(ge=1, le=1024)] = 8
    """Users of one page whose request runs at the same time; others wait and see their place."""

    max_waiting: Annotated[int, Field(ge=1, le=4096)] = 64
    """Users who wait, on all pages together; beyond it a page says that it is busy."""

    max_upload_bytes: Annotated[int, Field(ge=1024, le=MAX_BODY_BYTES)] = RECORDING_BYTES
    """Largest recording in bytes. All together take up to 16 times as much of the node's disk."""

    request_timeout_s: Seconds = 600
    """Seconds for one request to the service."""
