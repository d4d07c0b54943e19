"""The configuration of the router application, which is the `args` of its entry in a Serve file.

Quotas become a section of their own beside these settings.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from truthgpt_serve.body_limits import MAX_BODY_BYTES, ROUTER_BODY_BYTES
from truthgpt_serve.config.auth import AuthSection
from truthgpt_serve.config.base import (
    NonNegativeNumber,
    NonNegativeSeconds,
    ReplicaCount,
    RequestCount,
    Seconds,
    Section,
)
from truthgpt_serve.config.cors import CorsSection

ClientHeader = Annotated[
    str,
    Field(pattern=r"^[A-Za-z0-9-]+$", min_length=1, max_length=64),
    AfterValidator(str.lower),
]


class RouterConfig(Section):
    """Limits and timeouts of the router."""

    max_body_bytes: Annotated[int, Field(ge=1, le=MAX_BODY_BYTES)] = ROUTER_BODY_BYTES
    """Largest request body in bytes; a larger one is answered 413. It also bounds what is buffered
    while looking for `model`, so more lets one request take more memory."""

    request_timeout_s: Seconds = 600
    """Seconds from a request's arrival to the end of its answer; then the model's work is aborted
    and the client gets 504. Keep it at most the models' `serving.max_request_s`."""

    direct: bool = True
    """Whether the proxy sends a request straight to its model where it can read which it is. Off,
    every request goes through the router, which costs more and changes no answer."""

    hold_timeout_s: NonNegativeSeconds = 60
    """Seconds that a request for a model which has run before is held while it scales from zero or
    is replaced, then 503; at `/models/<name>` too. More hides longer starts and keeps clients
    waiting longer."""

    connect_timeout_s: Seconds = 5
    """Seconds to open a connection to the proxy. More tolerates a busier node."""

    proxy_port: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Port of Ray Serve's own proxy on every node; by default the one that Serve reports, which is
    the Serve file's `http_options.port`."""

    num_replicas: ReplicaCount | None = None
    """Router replicas. Null: 1 on one machine where `direct` works, and 2 elsewhere. With two, the
    loss of one is not noticed; with one, what needs a router waits some seconds for the next. More
    spread the relaying over more cores."""

    max_replicas_per_node: Annotated[int, Field(ge=1, le=100)] | None = None
    """Router replicas on one node at most. On a cluster write 1 here and the number of nodes in
    `num_replicas`: each node then has its own, and a node more than replicas uses another's. Null
    sets no limit."""

    max_ongoing_requests: RequestCount = 4096
    """Requests that one router replica relays at the same time. More needs two file descriptors
    each."""

    max_queued_requests: RequestCount = 4096
    """Requests that wait, in each proxy, for a router replica; beyond it a client gets 429."""

    client_header: ClientHeader | None = None
    """Header in which a proxy in front of the service says the address of its client, such as
    `x-forwarded-for`, of which the last address counts. Without it all clients of that proxy that
    have no keys share the places of a full model as one. Set it only where clients reach the
    service through that proxy alone: others could write there what they like."""

    cpus: NonNegativeNumber = 0
    """CPU cores that Ray reserves per router replica. It bounds nothing. With more than 0 the
    router waits behind the models where these take all that there is; nothing answers meanwhile."""

    cors: CorsSection = Field(default_factory=CorsSection)
    """Which web pages may use the service from a browser."""

    auth: AuthSection | None = None
    """Who may use the service."""
