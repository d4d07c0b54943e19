"""Requests of the pages to the service; what goes wrong becomes one readable line."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from truthgpt_serve.http.foreign_errors import find_message
from truthgpt_serve.http.sse import DONE, EventSplitter, EventTooLargeError
from truthgpt_serve.playground.kept import Kept

CONNECT_TIMEOUT_S = 5.0
LIST_TIMEOUT_S = 10.0
"""For what the router answers by itself."""
MAX_ANSWER_BYTES = 64 << 20
MAX_EVENT_BYTES = 32 << 20
"""The longest event: an image in base64."""
MAX_MODELS = 200
"""Models that the pages list."""
MAX_MESSAGE = 2000
LIST_KEEP_S, CARD_KEEP_S = 2.0, 5.0
"""How long the models that a key shows, and what is told of each, are used again."""
MAX_LISTS = 64
"""Lists that are being made or wait for it, each for another key."""
_LISTS_AT_ONCE, _CARDS_AT_ONCE = 4, 8
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


class ServiceFault(Exception):
    """The service did not answer, or refused; the text is for the user and has no key in it."""


class ServiceClient:
    """The service as the pages use it; close it at the end.

    Args:
        base_url: Scheme, host and port, and maybe a path, without a slash at the end.
        timeout_s: Longest time for one request.
    """

    def __init__(self, base_url: str, *, timeout_s: float = 600.0) -> None:
        self.base_url = base_url
        self._timeout_s = timeout_s
        local = urlsplit(base_url).hostname in _LOOPBACK
        self._http = httpx.AsyncClient(
            headers={"user-agent": "truthgpt-playground", "accept-encoding": "identity"},
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=512, max_keepalive_connections=16),
            trust_env=not local,
            verify=base_url.startswith("https:"),
        )
        self._lists: Kept[list[dict[str, Any]]] = Kept(LIST_KEEP_S, 4 * MAX_LISTS)
        self._cards: Kept[dict[str, Any]] = Kept(CARD_KEEP_S, 4 * MAX_MODELS)
        self._list_slots = asyncio.Semaphore(_LISTS_AT_ONCE)
        self._card_slots = asyncio.Semaphore(_CARDS_AT_ONCE)

    async def close(self) -> None:
        """Closes its connections."""
        await self._http.aclose()

    # -- models

    async def models(self, key: str) -> list[dict[str, Any]]:
        """Returns each model of `/v1/models` with its `task`, as far as that can be learned.

        Each list takes many requests, so that pages with the same key share it.

        Raises:
            ServiceFault: As `get`, or too many other lists are being made.
        """
        name = hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()
        if self._lists.num_finding >= MAX_LISTS and self._lists.look(name) is None:
            raise ServiceFault("The playground is busy: try again in a moment")
        return await self._lists.get(name, lambda: self._find_models(key))

    async def _find_models(self, key: str) -> list[dict[str, Any]]:
        async with self._list_slots:
            value = await self.get("/v1/models", key)
            entries = value.get("data") if isinstance(value, dict) else None
            if not isinstance(entries, list):
                raise self._foreign("/v1/models is not a list of models")
            named = [
                one for one in entries if isinstance(one, dict) and isinstance(one.get("id"), str)
            ]
            if not named:
                return []
            # A key that may read one model's card may use those that were read with other keys.
            first = await self._describe(named[0], key, shared=False)
            shared = "card" in first
            rest = [self._describe(one, key, shared=shared) for one in named[1:MAX_MODELS]]
            return [first, *await asyncio.gather(*rest)]

    async def _describe(self, entry: dict[str, Any], key: str, *, shared: bool) -> dict[str, Any]:
        async def find() -> dict[str, Any]:
            async with self._card_slots:
                found = await self.get(f"/v1/models/{quote(entry['id'], safe='')}", key)
            card = found.get("card") if isinstance(found, dict) else None
            if not isinstance(card, dict):
                return {}
            return {**found, "card": card}

        try:
            found = await (self._cards.get(entry["id"], find) if shared else find())
        except ServiceFault:
            return entry
        return {**entry, **found}

    async def readiness(self, key: str) -> dict[str, Any]:
        """Returns what `/ready` says; it answers 503 as long as a model is not running."""
        value = await self.get("/ready", key, accept=(503,))
        if not isinstance(value, dict):
            raise self._foreign("/ready is not a JSON object")
        return value

    # -- requests

    async def get(self, path: str, key: str, *, accept: tuple[int, ...] = ()) -> Any:
        """Returns the JSON at a path.

        Raises:
            ServiceFault: There was no answer, or another one.
        """
        async with self._send("GET", path, key, timeout_s=LIST_TIMEOUT_S) as answer:
            body = await self._read(answer)
            if answer.status_code != 200 and answer.status_code not in accept:
                raise _refusal(answer, body, has_key=bool(key))
            return self._parse(path, body)

    async def post(self, path: str, key: str, **content: Any) -> Any:
        """Returns the JSON that a model answers.

        Args:
            path: Below the address.
            key: The API key, or an empty text.
            content: `json`, or `data` and `files` of a form.

        Raises:
            ServiceFault: As `get`.
        """
        async with self._send("POST", path, key, **content) as answer:
            body = await self._read(answer)
            if answer.status_code != 200:
                raise _refusal(answer, body, has_key=bool(key))
            return self._parse(path, body)

    async def stream(
        self, path: str, key: str, request: Mapping[str, Any]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Yields the events of a model's answer as they come; closing it ends the request.

        Raises:
            ServiceFault: As `get`, or an error event came.
        """
        async with self._send("POST", path, key, json=dict(request)) as answer:
            if answer.status_code != 200:
                raise _refusal(answer, await self._read(answer), has_key=bool(key))
            async for data in self._events(answer):
                if data == DONE:
                    return
                event = self._parse("an event", data)
                if not isinstance(event, dict):
                    raise self._foreign("an event is not a JSON object")
                if event.get("error"):
                    raise ServiceFault(_message(data) or "The request failed")
                yield event

    @asynccontextmanager
    async def _send(
        self, method: str, path: str, key: str, *, timeout_s: float | None = None, **content: Any
    ) -> AsyncIterator[httpx.Response]:
        headers = {"authorization": f"Bearer {check_key(key)}"} if key else {}
        try:
            async with (
                asyncio.timeout(timeout_s or self._timeout_s),
                self._http.stream(
                    method, f"{self.base_url}{path}", headers=headers, **content
                ) as answer,
            ):
                yield answer
        except TimeoutError as error:
            raise ServiceFault("The service did not answer in time") from error
        except httpx.ConnectError as error:
            raise ServiceFault(
                f"No service answers at {self.base_url}: is it running? The setting is `base_url` "
                "in the playground's `args`"
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            what = type(error).__name__
            raise ServiceFault(
                f"The connection to the service broke ({what}): try again"
            ) from error

    async def _events(self, answer: httpx.Response) -> AsyncIterator[bytes]:
        reader = EventSplitter(MAX_EVENT_BYTES)
        try:
            async for piece in answer.aiter_raw():
                for data in reader.feed(piece):
                    yield data
        except EventTooLargeError as error:
            raise self._foreign(str(error)) from error
        for data in reader.finish():
            yield data

    async def _read(self, answer: httpx.Response) -> bytes:
        pieces, size = [], 0
        async for piece in answer.aiter_raw():
            size += len(piece)
            if size > MAX_ANSWER_BYTES:
                raise self._foreign(f"an answer has more than {MAX_ANSWER_BYTES} bytes")
            pieces.append(piece)
        return b"".join(pieces)

    def _parse(self, what: str, body: bytes) -> Any:
        try:
            return json.loads(body)
        except (ValueError, RecursionError) as error:
            raise self._foreign(f"{what} is not JSON") from error

    def _foreign(self, what: str) -> ServiceFault:
        return ServiceFault(f"{self.base_url}: {what}; is that the address of the service?")


def check_key(key: str) -> str:
    """Returns an API key without the spaces around it.

    Raises:
        ServiceFault: It has characters that no header can carry. The message does not show it.
    """
    key = key.strip()
    if not (key.isascii() and key.isprintable()) or " " in key or len(key) > 4096:
        raise ServiceFault("The API key has spaces, line breaks or letters beyond ASCII")
    return key


def _refusal(answer: httpx.Response, body: bytes, *, has_key: bool) -> ServiceFault:
    status = answer.status_code
    message = _message(body)
    if message is None:
        return ServiceFault(f"The service answered with status {status} and no message")
    if status in (401, 403):
        message += ": check the API key" if has_key else ": enter an API key at the top of the page"
    elif status in (429, 503) and (seconds := answer.headers.get("retry-after", "")).isdigit():
        message += f" (try again in {int(seconds)} s)"
    return ServiceFault(message)


def _message(body: bytes) -> str | None:
    message = find_message(body)
    return " ".join(message.split())[:MAX_MESSAGE] if message else None
