"""Reads the requests of one model: their bodies up to its limits, for one of its names."""

from __future__ import annotations

from typing import Any

from truthgpt_serve.errors import not_here
from truthgpt_serve.http.caller import Bounds
from truthgpt_serve.http.connection import Connection
from truthgpt_serve.http.json_body import parse_object
from truthgpt_serve.server.instance import ModelInstance
from truthgpt_serve.server.text_limits import TextLimits


class RequestReader:
    """What the routes of one model have in common.

    Args:
        instance: The model; started before the first request.
        max_body_bytes: The largest request body; by default what the configuration says.

    Attributes:
        bounds: What one request may take.
        limits: What a request for text or embeddings may ask for.
        names: The model's name, and its aliases.
    """

    def __init__(self, instance: ModelInstance, max_body_bytes: int | None = None) -> None:
        self._instance = instance
        self.bounds = Bounds(instance.max_request_s, max_body_bytes or instance.max_body_bytes)
        self.limits = TextLimits(instance.config.serving.limits)
        self.names = (instance.name, *instance.config.serving.aliases)

    async def read(self, connection: Connection) -> bytes:
        """Returns a request's body; errors as of `Connection.read`."""
        return await connection.read(self.bounds.max_body_bytes, self.bounds.max_request_s)

    async def read_fields(self, connection: Connection, task: str, routes: str) -> dict[str, Any]:
        """Returns the fields of a JSON body that is within the limits.

        Args:
            connection: The request.
            task: The task whose models have this route.
            routes: What such routes are called, for messages.

        Raises:
            UnsupportedError: The model has another task.
            RequestError: The body is malformed, or asks for too much.
        """
        body = await self.read(connection)
        self._instance.check_task(task, routes)
        fields = parse_object(body)
        self.limits.check(connection.path, body, fields)
        return fields

    def own_name(self, model: str) -> str:
        """Returns the model's own name for any of its names. Raises ModelNotFoundError."""
        if model not in self.names:
            raise not_here(model, self._instance.name)
        return self._instance.name
