"""Carries the contract's requests to the remote server."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from deployments.remote.engine import Answer, Remote
from deployments.remote.headers import RequestHeaders
from deployments.remote.health import Monitor
from deployments.remote.relay import Relay
from truthgpt_serve.errors import TruthGPTError, UpstreamError
from truthgpt_serve.http.caller import Caller
from truthgpt_serve.http.foreign_errors import read_passed_error
from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.server.openai_backend import MAX_ANSWER_BYTES


class RemoteTransport:
    """Sends requests of `OpenAIBackend`.

    Args:
        remote: The server, entered.
        headers: Makes the headers of requests.
        monitor: Knows the model's name there.
        relay: Sends requests.
    """

    def __init__(
        self, remote: Remote, headers: RequestHeaders, monitor: Monitor, relay: Relay
    ) -> None:
        self._remote = remote
        self._headers = headers
        self._monitor = monitor
        self._relay = relay

    @asynccontextmanager
    async def send(
        self, path: str, payload: dict[str, Any], caller: Caller
    ) -> AsyncGenerator[_Reply, None]:
        """Sends a request under the model's name there."""
        self._monitor.refuse_if_down()
        payload["model"] = await self._monitor.find_model()
        marks = [line for line in caller.headers if line[0].startswith(b"x-truthgpt-")]
        headers = [
            *self._headers.build(marks, caller.request_id),
            ("content-type", "application/json"),
        ]
        url = self._remote.addresses.of(path)
        answer = await self._relay.exchange("POST", url, headers, encode_json(payload))
        try:
            self._relay.refuse(answer)
            if answer.status >= 400:
                raise read_passed_error(answer.status, await answer.read_all(MAX_ANSWER_BYTES))
            yield _Reply(answer)
        finally:
            answer.close()

    def event_error(self, event: bytes) -> TruthGPTError:
        """Returns the error that an event of a stream means."""
        return read_passed_error(UpstreamError.status, event)

    def unreadable(self, why: str) -> TruthGPTError:
        """Returns the error for an answer that is not as OpenAI's are."""
        return UpstreamError(f"{self._remote.label} answered what cannot be read ({why})")


class _Reply:
    def __init__(self, answer: Answer) -> None:
        self._answer = answer

    async def read(self) -> bytes:
        return await self._answer.read_all(MAX_ANSWER_BYTES)

    async def pieces(self) -> AsyncIterator[bytes]:
        more = True
        while more:
            data, more = await self._answer.read()
            yield data
