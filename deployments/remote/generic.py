"""The contract's `infer` and `stream` over the remote server's OpenAI routes.

Knows inputs and outputs by task; how requests travel is the relay's.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from deployments.remote.config import RemoteSettings
from deployments.remote.engine import Answer, Remote
from deployments.remote.headers import RequestHeaders
from deployments.remote.monitor import Monitor
from deployments.remote.relay import Relay
from truthgpt_serve.errors import UnsupportedError, UpstreamError
from truthgpt_serve.http.asgi import Headers
from truthgpt_serve.http.foreign_errors import read_passed_error
from truthgpt_serve.http.json_body import encode_json
from truthgpt_serve.http.sse import EventReader
from truthgpt_serve.request_model import bad_field

MAX_ANSWER_BYTES = 256 * 1024 * 1024
_USAGE = ("prompt_tokens", "completion_tokens")


class Generic:
    """Answers inputs of one task.

    Args:
        remote: The server, entered.
        headers: Makes the headers of requests.
        monitor: Knows the model's name there.
        relay: Sends requests.
        settings: Which route texts take.
        task: The configuration's `task`.
    """

    def __init__(
        self,
        remote: Remote,
        headers: RequestHeaders,
        monitor: Monitor,
        relay: Relay,
        settings: RemoteSettings,
        task: str,
    ) -> None:
        self._remote = remote
        self._headers = headers
        self._monitor = monitor
        self._relay = relay
        self._chats = settings.infer_with == "chat"
        self._task = task

    async def infer(
        self, inputs: Mapping[str, Any], given: Headers, request_id: str
    ) -> dict[str, Any]:
        """Returns the outputs of one request.

        Args:
            inputs: `text` and `max_new_tokens`, or `prompt`; other fields go to the server as they
                are.
            given: Headers of the client's request.
            request_id: For both logs.

        Raises:
            TruthGPTError: The inputs are wrong, or the remote server refuses or fails.
        """
        path, payload = self._request(inputs)
        async with self._send(path, payload, given, request_id) as answer:
            body = await answer.read_all(MAX_ANSWER_BYTES)
        try:  # in a thread, because a picture takes long to decode
            return await asyncio.to_thread(lambda: self._outputs(json.loads(body)))
        except (LookupError, TypeError, ValueError) as error:
            raise self._unreadable(error) from error

    async def stream(
        self, inputs: Mapping[str, Any], given: Headers, request_id: str
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yields `{"text": delta}`, the last with `finish_reason`; other tasks yield all at once.

        Arguments and errors are those of `infer`.
        """
        if self._task != "text-generation":
            yield await self.infer(inputs, given, request_id)
            return
        path, payload = self._request(inputs)
        async with self._send(path, {**payload, "stream": True}, given, request_id) as answer:
            events, more, ended = EventReader(MAX_ANSWER_BYTES), True, False
            while more:
                data, more = await answer.read()
                for event in events.feed(data):
                    for item in self._items(event):
                        ended = ended or "finish_reason" in item
                        yield item
        if not ended:
            raise UpstreamError(f"{self._remote.label} ended its stream before it was whole")

    # -- requests

    def _request(self, inputs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        fields = dict(inputs)
        if self._task == "image-generation":
            prompt = _take_text(fields, "prompt")
            fields.setdefault("response_format", "b64_json")
            fields = {key: value for key, value in fields.items() if value is not None}
            return "/v1/images/generations", {**fields, "prompt": prompt}
        if self._task == "custom":
            raise UnsupportedError(
                "a remote model with task custom has no inputs of its own: send the remote "
                "server's own routes, or set the task"
            )
        text = _take_text(fields, "text")
        if self._task == "embedding":
            return "/v1/embeddings", {**fields, "input": text}
        limit = fields.pop("max_new_tokens", None)
        if limit is not None:
            fields.setdefault("max_tokens", limit)
        if self._chats:
            messages = [{"role": "user", "content": text}]
            return "/v1/chat/completions", {**fields, "messages": messages}
        return "/v1/completions", {**fields, "prompt": text}

    @asynccontextmanager
    async def _send(
        self, path: str, payload: dict[str, Any], given: Headers, request_id: str
    ) -> AsyncGenerator[Answer, None]:
        self._monitor.refuse_if_down()
        payload["model"] = await self._monitor.find_model()
        marks = [line for line in given if line[0].startswith(b"x-truthgpt-")]
        headers = [
            *self._headers.build(marks, request_id),
            ("content-type", "application/json"),
        ]
        url = self._remote.addresses.of(path)
        answer = await self._relay.exchange("POST", url, headers, encode_json(payload))
        try:
            self._relay.refuse(answer)
            if answer.status >= 400:
                raise read_passed_error(answer.status, await answer.read_all(MAX_ANSWER_BYTES))
            yield answer
        finally:
            answer.close()

    # -- answers

    def _outputs(self, answer: Any) -> dict[str, Any]:
        if self._task == "image-generation":
            return {"image": _read_image(answer["data"][0])}
        usage = answer.get("usage") or {}
        if self._task == "embedding":
            outputs = {"embedding": answer["data"][0]["embedding"]}
            tokens = usage.get("prompt_tokens")
            return outputs if tokens is None else {**outputs, "num_tokens": tokens}
        choice = answer["choices"][0]
        text = choice["message"].get("content") if self._chats else choice["text"]
        outputs = {"text": text or "", "finish_reason": choice.get("finish_reason")}
        counts = {key: usage[key] for key in _USAGE if isinstance(usage.get(key), int)}
        return {**outputs, "usage": counts} if counts else outputs

    def _items(self, event: bytes) -> list[dict[str, Any]]:
        if event == b"[DONE]":
            return []
        try:
            value = json.loads(event)
            if "error" in value:
                raise read_passed_error(502, event)
            return [self._item(choice) for choice in value["choices"]]
        except (LookupError, TypeError, ValueError) as error:
            raise self._unreadable(error) from error

    def _item(self, choice: Any) -> dict[str, Any]:
        text = choice["delta"].get("content") if self._chats else choice["text"]
        item = {"text": text or ""}
        reason = choice.get("finish_reason")
        return item if reason is None else {**item, "finish_reason": reason}

    def _unreadable(self, error: Exception) -> UpstreamError:
        return UpstreamError(
            f"{self._remote.label} answered what this family cannot read "
            f"({type(error).__name__}: {error})"
        )


def _take_text(fields: dict[str, Any], name: str) -> str:
    text = fields.pop(name, None)
    if not isinstance(text, str):
        raise bad_field(f"inputs.{name}", "is required and must be a string")
    return text


def _read_image(entry: Any) -> Any:
    from PIL import Image  # of the extra `images`; only this task needs it

    if "b64_json" not in entry:
        raise ValueError("the picture came as an address; ask for response_format b64_json")
    image = Image.open(io.BytesIO(base64.b64decode(entry["b64_json"])))
    image.load()
    return image
