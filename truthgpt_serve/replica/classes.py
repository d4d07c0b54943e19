"""The two Serve deployment classes: a model's replica and the router's.

Plain classes: `truthgpt_serve.app` makes deployments of them. They know neither family nor engine.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from ray import serve

from truthgpt_serve.access.fair_queue import FairQueue
from truthgpt_serve.access.settings import Access, Auth
from truthgpt_serve.access.turns import Turns
from truthgpt_serve.checks import require_weights, resolve_family
from truthgpt_serve.cluster.controller import (
    fetch_replica_addresses,
    fetch_serve_state,
    proxy_socket,
    worker_proxy_port,
)
from truthgpt_serve.cluster.defaults import DEFAULT_PORT
from truthgpt_serve.cluster.ray_servers import (
    answer_aside,
    mend_print,
    own_addresses,
    unwatched,
)
from truthgpt_serve.cluster.shared_files import SharedFiles
from truthgpt_serve.cluster.start_errors import cause_first, to_cause
from truthgpt_serve.config import load_model_config, load_router_config
from truthgpt_serve.config.hiding import HiddenValues
from truthgpt_serve.garbage import TimedCollections, rare_collections
from truthgpt_serve.hardware.plan import request_limits
from truthgpt_serve.http.client_limits import ClientLimits
from truthgpt_serve.http.coalescing import JoinedStreams
from truthgpt_serve.http.cors import Cors
from truthgpt_serve.http.headers import EditedHeads, of_application
from truthgpt_serve.http.probes import HEALTH, METRICS
from truthgpt_serve.http.sse import with_stream_headers
from truthgpt_serve.replica.load import ReplicaLoad
from truthgpt_serve.replica.metrics import ReplicaMetrics, with_metrics
from truthgpt_serve.replica.named import NamedRequests
from truthgpt_serve.replica.queue_answers import QueueAnswers
from truthgpt_serve.replica.work import WorkStats
from truthgpt_serve.router.anthropic_answers import AnthropicAnswers
from truthgpt_serve.router.app import RouterApp
from truthgpt_serve.server import ModelInstance, create_asgi_app
from truthgpt_serve.server.arriving_body import Arrivals
from truthgpt_serve.server.bounded import BoundedRequests
from truthgpt_serve.server.encoded_bodies import EncodedBodies
from truthgpt_serve.server.faults import ReplicaGuard
from truthgpt_serve.server.gathered_bodies import GatheredBodies, max_slow
from truthgpt_serve.telemetry.access_log import AccessLog
from truthgpt_serve.telemetry.log_lines import mend_lines
from truthgpt_serve.telemetry.tracing import open_tracer
from truthgpt_serve.telemetry.watched import Watched
from truthgpt_serve.usage.collector import CollectorError, UsageCollector, open_recorder

logger = logging.getLogger(__name__)


class ModelReplica:
    """One replica of one model: loads it and serves its ASGI application.

    Args:
        cfg: The model's whole configuration as a nested dict.
        allow_origins: Origins whose pages may use the model's own address from a browser.
        hidden: Values of variables, which causes of failures do not show, and how to name them.
        auth: Who may use it.
    """

    def __init__(
        self,
        cfg: dict[str, Any],
        allow_origins: Sequence[str] = (),
        hidden: Mapping[str, str] | None = None,
        auth: Auth | None = None,
    ) -> None:
        mend_print()
        mend_lines()
        config = load_model_config(cfg)
        self._name = serve.get_replica_context().app_name
        adapters = (adapter.name for adapter in config.serving.adapters)
        self._names = (self._name, *config.serving.aliases, *adapters)
        self._allow_origins = allow_origins
        self._hide = HiddenValues(dict(hidden or {})).hide
        self._collections = TimedCollections()
        self._stream_interval_s = config.serving.stream_interval_s
        # Before the import of a user's module, which may end the process.
        self._guard = ReplicaGuard(self._name, config.to_cfg())
        with self._closing_on_error(), cause_first(self._name, self._hide):
            self._access = Access(auth, allow_origins, self._names, open_recorder)
            self._is_unsaid = auth is None
            spec = resolve_family(config)
            require_weights(config)
            # Before the engine, which writes its own endpoint into the environment.
            self._tracer = open_tracer("replica")
            self._instance = ModelInstance(spec, config, name=self._name, files=SharedFiles())
        scaling = config.serving.autoscaling
        self._scales_on_work = scaling is not None and scaling.target_queue_s is not None

    async def __serve_build_asgi_app__(self) -> Any:
        """Loads the model; Serve calls this once, before the replica takes requests."""
        with self._closing_on_error(), cause_first(self._name, self._hide):
            try:
                await self._guard.prepare()
                with rare_collections():
                    await self._instance.start()
                    app = await create_asgi_app(self._instance)
            except BaseException:
                await self._instance.close()
                raise
        self._collections.start()
        app = self._guard.wrap(app, getattr(self._instance.model, "fatal_error", None))
        load = ReplicaLoad(self._limits()[0])
        app = self._surround(app, load)
        if self._scales_on_work:
            self.record_autoscaling_stats = partial(_read_work, WorkStats(load, self._instance))
        context = serve.get_replica_context()
        own = context.replica_tag
        find_others = partial(_find_others, context.app_name, own)
        if self._is_unsaid:
            await asyncio.to_thread(_warn_of_open_port)
        access = self._access
        pages = (load.page, access.metrics_page)
        metrics = ReplicaMetrics(app, own, find_others, pages, access.internal_headers)
        aside = Cors(metrics, self._allow_origins)
        log, tracer = AccessLog(), self._tracer
        answer_aside(
            aside,
            (HEALTH, METRICS),
            lambda app: load.arriving(self._worded(unwatched(app))),
            lambda app, mount: Watched(
                access.guard(app, mount), log, model=self._name, mount=mount, tracer=tracer
            ),
        )
        # Again: what comes by Ray's fallback proxy does not pass this replica's own port.
        app = Cors(with_metrics(app, metrics), self._allow_origins)
        app = access.guard(app, hides_key=True)
        return Watched(AnthropicAnswers(app), log, model=self._name, tracer=tracer)

    def _surround(self, app: Any, load: ReplicaLoad) -> Any:
        """Puts around the application what answers the same for every family, as the router does.

        What stands further out sees a request first, and an answer last.

        Args:
            app: The application.
            load: Counts what the model works on: what waits here is no work yet.
        """
        instance = self._instance
        owner, limits = f"model {self._name!r}", self._limits()
        if self._stream_interval_s:
            app = JoinedStreams(app, self._stream_interval_s)
        size, limit_s = instance.max_body_bytes, instance.max_request_s
        app = self._access.counting(NamedRequests(app, self._names))
        app = EncodedBodies(app, max_body_bytes=size, max_request_s=limit_s)
        num_held = sum(limits)
        queue = FairQueue(*limits, owner)
        turns = Turns(load.working(app), queue, owner, max_request_s=limit_s)
        app = GatheredBodies(turns, max_slow(num_held), owner, turns.check)
        arrivals = Arrivals(max(1, num_held // 4), lambda: queue.num_waiting > 0)
        app = BoundedRequests(
            app, self._name, max_body_bytes=size, max_request_s=limit_s, arrivals=arrivals
        )
        return EditedHeads(app, of_application, with_stream_headers)

    def _limits(self) -> tuple[int, int]:
        return request_limits(self._instance.config, self._instance.spec)

    def _worded(self, app: Any) -> Any:
        """Has Ray's queue in front of this replica refuse in our words, and its time limit."""
        num_requests = sum(self._limits())
        limited = ClientLimits(app, self._allow_origins)
        return QueueAnswers(limited, self._name, num_requests, self._allow_origins)

    @contextlib.contextmanager
    def _closing_on_error(self) -> Iterator[None]:
        """Notes that what the block raises is no death."""
        try:
            yield
        except BaseException:
            self._guard.close()
            raise

    def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes the model card, which only the router reads."""

    async def check_health(self) -> None:
        """Raises when the engine is dead, so that Serve replaces the replica.

        Raises:
            RuntimeError: In the place of any exception. Serve's controller unpickles what is raised
                here and would import its class's module: vLLM's takes 480 MB there, and stops
                Serve's control loop for many seconds.
        """
        try:
            await self._instance.check_health()
        except Exception as error:
            raise RuntimeError(str(to_cause(error, self._hide))) from None

    async def __del__(self) -> None:
        """Frees the engine; Serve awaits this at the end of a graceful shutdown."""
        if not hasattr(self, "_instance"):  # `__init__` failed, and its error is the one to show
            return
        self._guard.close()
        self._collections.close()
        await asyncio.to_thread(self._access.close)  # it sends the last usage
        if self._tracer is not None:
            await asyncio.to_thread(self._tracer.close)
        await self._instance.close()


async def _read_work(stats: WorkStats) -> dict[str, float]:
    """On the event loop that the requests run on, where nothing changes meanwhile."""
    return stats.read()


def _warn_of_open_port() -> None:
    """Warns where other machines reach a replica that asks for no key."""
    if others := own_addresses()[1:]:
        logger.warning(
            "others reach this replica at %s without a key: write `auth` into the `args` of every "
            "application (docs/keys.md)",
            others[0],
        )


async def _find_others(application: str, own: str) -> dict[str, tuple[str, int]]:
    replicas = await asyncio.to_thread(fetch_replica_addresses, application)
    replicas.pop(own, None)
    return replicas


class Router:
    """One replica of the router.

    Args:
        config: The router's configuration as a nested dict.
        auth: Who may use the service.
    """

    def __init__(self, config: dict[str, Any], auth: Auth | None = None) -> None:
        mend_print()
        mend_lines()
        self._config = load_router_config(config)
        with cause_first("router", lambda text: text):
            self._access = Access(auth, self._config.cors.allow_origins)
        self._collections = TimedCollections()
        self._usage = None
        if auth is not None and auth.keys_file is not None:
            self._usage = UsageCollector(auth.keys_file, auth.usage_file, auth.keep_days)

    async def __serve_build_asgi_app__(self) -> Any:
        """Finds this node's proxy; the application starts with Serve's lifespan event."""
        state = await asyncio.to_thread(fetch_serve_state)
        port = worker_proxy_port() or self._config.proxy_port or state.proxy_port
        proxy = (state.proxy_host, port or DEFAULT_PORT)
        router = RouterApp(
            self._config,
            fetch_serve_state,
            proxy,
            files=SharedFiles(),
            socket=proxy_socket(),
            internal_headers=self._access.internal_headers,
            fetch_usage=self._usage.query if self._usage is not None else None,
        )
        if self._usage is not None:
            with contextlib.suppress(CollectorError):  # whoever needs it says so
                await asyncio.to_thread(self._usage.start)
        self._collections.start()
        origins = self._config.cors.allow_origins
        app = Cors(router, origins)
        log, guard, tracer = AccessLog(), self._access.guard, open_tracer("router")
        answer_aside(
            app,
            (HEALTH, METRICS, "/ready"),
            lambda app: ClientLimits(app, origins),
            lambda app, mount: Watched(guard(app, mount), log, mount=mount, tracer=tracer),
        )
        return Watched(AnthropicAnswers(guard(app)), log, tracer=tracer)
