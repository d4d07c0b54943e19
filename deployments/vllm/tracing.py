"""Where vLLM sends its spans: where the service sends those of requests."""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping
from typing import Any

from truthgpt_serve.http.asgi import Headers
from truthgpt_serve.telemetry.tracing import PROTOCOLS, find_receiver

_HEADERS = (b"traceparent", b"tracestate")


def trace_endpoint(
    engine: Mapping[str, Any], environ: MutableMapping[str, str] = os.environ
) -> str | None:
    """Returns vLLM's `otlp_traces_endpoint`; sets the protocol, which vLLM reads by itself.

    Args:
        engine: `serving.engine`, whose own address goes before the environment's.
        environ: The environment.
    """
    given = engine.get("otlp_traces_endpoint")
    if given is not None:
        return str(given)
    receiver = find_receiver(environ)
    if receiver is None:
        return None
    environ[PROTOCOLS[0]] = receiver.protocol  # vLLM takes no other name, and gRPC without one
    return receiver.endpoint


def trace_headers(headers: Headers) -> Headers:
    """Returns those headers of a request that say to which trace it belongs."""
    return [header for header in headers if header[0] in _HEADERS]
