"""The contract's inputs and outputs over OpenAI's routes, whatever carries the requests there."""

from __future__ import annotations

import asyncio
import base64
import io
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Protocol

from truthgpt_serve.errors import TruthGPTError, UnsupportedError
from truthgpt_serve.http.caller import Caller
from truthgpt_serve.http.sse import DONE, EventSplitter
from truthgpt_serve.request_schema import bad_field
from truthgpt_serve.usage.counted import current_usage

MAX_ANSWER_BYTES = 256 * 1024 * 1024
_USAGE = ("prompt_tokens", "completion_tokens")
_UNREADABLE = (AttributeError, LookupError, TypeError, ValueError)
"""What reading an answer raises that is not as OpenAI's are."""

Kind = Literal["completion", "chat", "embedding", "image"]


class Reply(Protocol):
    """An answer whose status is good."""

    async def read(self) -> bytes:
        """Returns the whole body. Raises TruthGPTError when it breaks off or is too long."""

    def pieces(self) -> AsyncIterator[bytes]:
        """Yields the body as it comes. Raises TruthGPTError when it breaks off."""


class Transport(Protocol):
    """Carries requests to a server or an application with OpenAI's routes."""

    def send(
        self, path: str, payload: dict[str, Any], caller: Caller
    ) -> AbstractAsyncContextManager[Reply]:
        """Sends a request with the model's name.

        Leaving the context before the answer's end ends the work on it.

        Raises:
            TruthGPTError: The answer's status is not good, or there is none.
        """

    def event_error(self, event: bytes) -> TruthGPTError:
        """Returns the error that an event of a stream means."""

    def unreadable(self, why: str) -> TruthGPTError:
        """Returns the error for an answer that is not as OpenAI's are."""


class OpenAIBackend:
    """Answers inputs by one kind of route.

    Args:
        transport: Carries the requests.
        kind: Which route; None where no route takes inputs of the contract.
        with_usage: Whether the outputs have the numbers of tokens.
        default_max_tokens: Most tokens of an answer where the inputs have no `max_new_tokens`;
            None leaves it to the other side.
        unsupported: Why there is no kind, for the error.
    """

    def __init__(
        self,
        transport: Transport,
        kind: Kind | None,
        *,
        with_usage: bool,
        default_max_tokens: int | None = None,
        unsupported: str = "",
    ) -> None:
        self._transport = transport
        self._kind = kind
        self._with_usage = with_usage
        self._default_max_tokens = default_max_tokens
        self._unsupported = unsupported

    async def infer(self, inputs: Mapping[str, Any], caller: Caller) -> dict[str, Any]:
        """Returns the outputs of one request.

        Args:
            inputs: `text`, for texts with `max_new_tokens`, or `prompt` for images; other fields go
                to the route as they are.
            caller: Who asks.

        Returns:
            `{"text", "finish_reason"}`, `{"embedding"}`, or `{"image"}`; with usage also
            `usage` and `num_tokens`.

        Raises:
            TruthGPTError: The inputs are wrong, or the other side refuses or fails.
        """
        path, payload = self._request(inputs)
        async with self._transport.send(path, payload, caller) as reply:
            body = await reply.read()
        try:  # in a thread, because an image takes long to decode
            return await asyncio.to_thread(lambda: self._outputs(json.loads(body)))
        except _UNREADABLE as error:
            raise self._unreadable(error) from error

    async def stream(
        self, inputs: Mapping[str, Any], caller: Caller
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yields `{"text": delta}`, the last with `finish_reason`; other kinds yield all at once.

        Arguments and errors are those of `infer`. Where somebody counts tokens, the last item has
        `usage`, too.
        """
        if self._kind not in ("completion", "chat"):
            yield await self.infer(inputs, caller)
            return
        path, payload = self._request(inputs)
        payload["stream"] = True
        if self._with_usage and current_usage() is not None:
            payload.setdefault("stream_options", {"include_usage": True})
        ended, reader = False, EventSplitter(MAX_ANSWER_BYTES)
        last: dict[str, Any] | None = None
        usage: dict[str, int] = {}
        async with self._transport.send(path, payload, caller) as reply:
            async for piece in reply.pieces():
                for event in reader.feed(piece):
                    ended = ended or event == DONE
                    items, told = self._read_event(event)
                    usage = told or usage
                    for item in items:
                        if last is not None:
                            yield last
                        last = item if "finish_reason" in item else None
                        if last is None:
                            yield item
        if last is not None:  # the tokens are told behind it
            yield {**last, "usage": usage} if usage else last
        elif not ended:
            raise self._transport.unreadable("its stream ended before it was whole")

    def _request(self, inputs: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
        fields = dict(inputs)
        _check_plain(fields, "inputs")
        if self._kind == "image":
            prompt = _take_text(fields, "prompt")
            fields.setdefault("response_format", "b64_json")
            fields = {key: value for key, value in fields.items() if value is not None}
            return "/v1/images/generations", {**fields, "prompt": prompt}
        if self._kind is None:
            raise UnsupportedError(self._unsupported)
        text = _take_text(fields, "text")
        if self._kind == "embedding":
            return "/v1/embeddings", {**fields, "input": text}
        limit = fields.pop("max_new_tokens", None)
        limit = self._default_max_tokens if limit is None else limit
        if limit is not None:
            fields.setdefault("max_tokens", limit)
        if self._kind == "chat":
            messages = [{"role": "user", "content": text}]
            return "/v1/chat/completions", {**fields, "messages": messages}
        return "/v1/completions", {**fields, "prompt": text}

    def _outputs(self, answer: Any) -> dict[str, Any]:
        if self._kind == "image":
            return {"image": _read_image(answer["data"][0])}
        counts = self._counts(answer)
        if self._kind == "embedding":
            outputs = {"embedding": answer["data"][0]["embedding"]}
            tokens = counts.get("prompt_tokens")
            return outputs if tokens is None else {**outputs, "num_tokens": tokens}
        choice = answer["choices"][0]
        text = choice["message"].get("content") if self._kind == "chat" else choice["text"]
        outputs = {"text": text or "", "finish_reason": choice.get("finish_reason")}
        return {**outputs, "usage": counts} if counts else outputs

    def _read_event(self, event: bytes) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """Returns the items of an event, and the tokens that it tells."""
        if event == DONE:
            return [], {}
        try:
            value = json.loads(event)
            if "error" in value:
                raise self._transport.event_error(event)
            items = [self._item(choice) for choice in value["choices"]]
            return items, self._counts(value)
        except _UNREADABLE as error:
            raise self._unreadable(error) from error

    def _counts(self, answer: Any) -> dict[str, int]:
        usage = (answer.get("usage") or {}) if self._with_usage else {}
        return {key: usage[key] for key in _USAGE if isinstance(usage.get(key), int)}

    def _item(self, choice: Any) -> dict[str, Any]:
        text = choice["delta"].get("content") if self._kind == "chat" else choice["text"]
        item = {"text": text or ""}
        reason = choice.get("finish_reason")
        return item if reason is None else {**item, "finish_reason": reason}

    def _unreadable(self, error: Exception) -> TruthGPTError:
        return self._transport.unreadable(f"{type(error).__name__}: {error}")


def _check_plain(value: Any, place: str) -> None:
    """Raises RequestError for an image or array, which a route's JSON cannot carry."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_plain(item, f"{place}.{key}")
    elif isinstance(value, list):
        for index, item in enumerate(value):
            _check_plain(item, f"{place}[{index}]")
    elif value is not None and not isinstance(value, str | int | float):
        message = (
            "cannot be an image or an array for this model; messages of a chat may have images"
        )
        raise bad_field(place, message)


def _take_text(fields: dict[str, Any], name: str) -> str:
    text = fields.pop(name, None)
    if not isinstance(text, str):
        raise bad_field(f"inputs.{name}", "is required and must be a string")
    return text


def _read_image(entry: Any) -> Any:
    from PIL import Image  # of the extra `images`; only this kind needs it

    if "b64_json" not in entry:
        raise ValueError("the image came as an address; ask for response_format b64_json")
    image = Image.open(io.BytesIO(base64.b64decode(entry["b64_json"])))
    image.load()
    return image
