"""Sends one request on to the remote server and its answer back as it comes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, unquote

from deployments.remote.config import RemoteSettings
from deployments.remote.engine import Answer, Remote
from deployments.remote.headers import RequestHeaders
from deployments.remote.health import REFUSALS, Monitor
from deployments.remote.model_rename import AnswerNames, find_model_aside
from deployments.remote.usage import UsageReader, about_prompt, ask_for_usage, generates_text
from truthgpt_serve.errors import TruthGPTError, UpstreamError, not_here
from truthgpt_serve.http.asgi import UNREAD_TIMEOUT_S, Send, header
from truthgpt_serve.http.caller import Bounds
from truthgpt_serve.http.connection import Connection
from truthgpt_serve.http.envelope import error_event
from truthgpt_serve.http.open_inference import MODELS_PREFIX, split_model_path
from truthgpt_serve.http.sse import WholeEvents, is_event_stream
from truthgpt_serve.usage.counted import current_usage

logger = logging.getLogger(__name__)

_REFUSES = (400, 422)
_FAILED = 400
DOWN_STATUS = 502
"""From here on an answer may come from a proxy in front of a server that is gone."""


class Relay:
    """Relays requests of one application.

    Args:
        remote: The server, entered.
        headers: Makes the headers of requests.
        monitor: Knows whether the server answers, and the model's name there.
        settings: For messages about the key.
        names: The model names that clients send: its own, then its aliases.
        limits: What one request may take.
    """

    def __init__(
        self,
        remote: Remote,
        headers: RequestHeaders,
        monitor: Monitor,
        settings: RemoteSettings,
        names: Sequence[str],
        limits: Bounds,
    ) -> None:
        self._remote = remote
        self._headers = headers
        self._monitor = monitor
        self._settings = settings
        self._names = names
        self._limits = limits
        self._tells_usage = True

    async def __call__(self, connection: Connection, *, path: str) -> None:
        """Relays one request.

        Args:
            connection: The request; nothing has been sent yet.
            path: Its percent-encoded path below this application.

        Raises:
            TruthGPTError: Before anything was sent to the client.
            ClientGoneError: The client left.
        """
        self._monitor.refuse_if_down()
        limits = self._limits
        body = await connection.read(limits.max_body_bytes, limits.max_request_s)
        named = await find_model_aside(body, connection.header(b"content-type"))
        reply = _Reply(connection.send, connection.request_id)
        try:
            async with connection.guard(limits.max_request_s) as guard:
                path = await self._in_their_words(path)
                if named.name is not None:
                    theirs = await self._their_name(named.name)
                    body = body if theirs == named.name else named.renamed(theirs)
                    reply.rename(theirs, self._names[0])
                answer = await self._ask(connection, path, body, reply)
                try:
                    self.refuse(answer)
                    await reply.pass_on(answer)
                finally:
                    answer.close()
                guard.release()
        except TruthGPTError as error:
            if not reply.started:
                raise
            logger.warning("request %s: the answer broke off: %s", connection.request_id, error)
            await reply.break_off(error, connection.path)

    async def _ask(self, connection: Connection, path: str, body: bytes, reply: _Reply) -> Answer:
        """Sends a request, and has it say its tokens where they are counted."""
        usage = current_usage()
        if usage is None or usage.priority is None:  # nobody's key: the request stays as it is
            return await self.send(connection, path, body)
        about = about_prompt(path, body)
        try:
            answer, hides = await self._ask_to_tell(connection, path, body)
        except asyncio.CancelledError:  # its client left before the answer
            usage.prompt_tokens += about
            raise
        failed = answer.status >= _FAILED
        is_text = not failed and generates_text(path)
        about = 0 if failed else about
        reply.count(UsageReader(usage, hides=hides, about=about, is_text=is_text))
        return answer

    async def _ask_to_tell(
        self, connection: Connection, path: str, body: bytes
    ) -> tuple[Answer, bool]:
        """Returns the answer to a request, and whether it tells more than the client asked for."""
        asking = ask_for_usage(path, body) if self._tells_usage else None
        answer = await self.send(connection, path, asking or body)
        if asking is not None and answer.status in _REFUSES:
            answer.close()
            asking, answer = None, await self.send(connection, path, body)
            if answer.status < _REFUSES[0]:  # the server does not know the field
                self._tells_usage = False
        return answer, asking is not None

    async def _their_name(self, model: str) -> str:
        if model not in self._names:
            raise not_here(model, self._names[0])
        return await self._monitor.find_model()

    async def _in_their_words(self, path: str) -> str:
        """Returns a path of the Open Inference Protocol, which names the model, as they name it."""
        if not path.startswith(MODELS_PREFIX):
            return path
        name, rest = split_model_path(path)
        theirs = await self._their_name(unquote(name))
        return f"{MODELS_PREFIX}{quote(theirs, safe='')}{rest}"

    async def send(self, connection: Connection, path: str, body: bytes) -> Answer:
        """Sends a request with its body as it now is; returns the answer, to be closed."""
        scope = connection.scope
        headers = self._headers.build(scope["headers"], connection.request_id)
        query = scope.get("query_string", b"").decode("latin-1")
        url = self._remote.addresses.of(path, query)
        return await self.exchange(scope["method"], url, headers, body)

    async def exchange(
        self, method: str, url: str, headers: list[tuple[str, str]], body: bytes
    ) -> Answer:
        """Sends a request and notes what it says of the server's health."""
        try:
            answer = await self._remote.send(method, url, headers, body)
        except UpstreamError as error:
            self._monitor.failed(error.message)
            raise
        if answer.status < DOWN_STATUS:
            self._monitor.succeeded()
        return answer

    def refuse(self, answer: Answer) -> None:
        """Raises UpstreamError for an answer that is about this application, not its client."""
        status, label = answer.status, self._remote.label
        if status in REFUSALS:
            variable = self._settings.api_key_env
            advice = "it wants one: set serving.engine.api_key_env"
            if variable is not None:
                advice = f"check the environment variable {variable} of the replica"
            raise UpstreamError(
                f"{label} refuses the service's own key (status {status}); {advice}",
                code="remote_key_refused",
            )
        if 300 <= status < 400 and status != 304:
            raise UpstreamError(
                f"{label} redirects to another address (status {status}); "
                "model.name_or_path must name the last one"
            )


class _Reply:
    """The answer on its way to the client.

    Attributes:
        started: Whether the status and the headers are sent.
    """

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id.encode("latin-1")
        self._names: AnswerNames | None = None
        self._events: WholeEvents | None = None
        self._usage: UsageReader | None = None
        self.started = False

    def rename(self, theirs: str, ours: str) -> None:
        self._names = AnswerNames(theirs, ours) if theirs != ours else None

    def count(self, usage: UsageReader) -> None:
        self._usage = usage

    async def pass_on(self, answer: Answer) -> None:
        """Sends the answer as it comes."""
        headers = answer.headers
        if is_event_stream(headers):
            self._events = WholeEvents()
        elif not (header(headers, b"content-type") or b"").startswith(b"application/json"):
            self._names = self._usage = None
        # An answer that is all there keeps its length, and is one write.
        is_stream = self._events is not None
        data, more = (b"", True) if is_stream else await answer.read()
        data = self._change(data, more=more)
        if self._names is not None:
            headers = [line for line in headers if line[0] != b"content-length"]
        if not more and (self._names is not None or (answer.is_decoded and data)):
            headers = [*headers, (b"content-length", b"%d" % len(data))]
        self.started = True
        await self._send(
            {
                "type": "http.response.start",
                "status": answer.status,
                "headers": [*headers, (b"x-request-id", self._request_id)],
            }
        )
        if data or not more:
            await self._write(data, more=more)
        while more:
            data, more = await answer.read()
            data = self._change(data, more=more)
            if data or not more:
                await self._write(data, more=more)

    def _change(self, data: bytes, *, more: bool) -> bytes:
        if self._events is not None:
            data = self._events.feed(data)
            if not more:
                data += self._events.finish()
            if self._usage is not None:
                data = self._usage.events(data)
            return self._names.whole(data) if self._names is not None else data
        if self._usage is not None:
            self._usage.piece(data, more=more)
        return self._names.piece(data, more=more) if self._names is not None else data

    async def _write(self, data: bytes, *, more: bool) -> None:
        message: dict[str, Any] = {"type": "http.response.body", "body": data, "more_body": more}
        await self._send(message)

    async def break_off(self, error: TruthGPTError, path: str) -> None:
        """Ends a stream of events with the error.

        Anything else is left unfinished: the server then closes the connection, and the client
        learns that the answer is not whole.
        """
        if self._events is None or not self._events.between:
            return
        try:
            async with asyncio.timeout(UNREAD_TIMEOUT_S):
                await self._write(error_event(error, path), more=False)
        except TimeoutError:
            logger.warning("a client did not read the error that ends its stream")
