"""Requests to the service; whatever goes wrong becomes one readable line with the fix."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from truthgpt_serve.cli._service.address import Address, find_address, read_key
from truthgpt_serve.cli._service.failures import ServiceFault, describe_refusal, no_answer
from truthgpt_serve.cli._service.utf8 import check_text, no_text
from truthgpt_serve.http.sse import DONE, EventSplitter, EventTooLargeError
from truthgpt_serve.terminal import clean

if TYPE_CHECKING:
    import httpx

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 30.0
"""For what the router answers by itself."""
MODEL_TIMEOUT_S = 900.0
"""For the next byte of a model's answer; `serving.max_request_s` ends most requests before."""
MAX_ANSWER_BYTES = 64 << 20


class ServiceClient:
    """One connection pool to the service; close it, or use it as a context.

    Args:
        address: Where the service is; by default found as the commands do.
        key: API key, or None.
        timeout_s: For answers that no model computes.
    """

    def __init__(
        self,
        address: Address | None = None,
        key: str | None = None,
        *,
        timeout_s: float = ANSWER_TIMEOUT_S,
    ) -> None:
        import httpx  # 80 ms, which `--help` does not need

        self.address = address or find_address()
        self._key = key or read_key()
        self._timeout = httpx.Timeout(timeout_s, connect=min(timeout_s, CONNECT_TIMEOUT_S))
        self._slow = httpx.Timeout(MODEL_TIMEOUT_S, connect=CONNECT_TIMEOUT_S)
        headers = {"user-agent": "truthgpt", "accept-encoding": "identity"}
        if self._key:
            headers["authorization"] = f"Bearer {self._key}"
        self._http = httpx.Client(
            headers=headers,
            timeout=self._timeout,
            # A proxy from the environment, and certificates, only where they can have a meaning.
            trust_env=not self.address.is_loopback,
            verify=self.address.url.startswith("https:"),
        )

    def __enter__(self) -> ServiceClient:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes its connections."""
        self._http.close()

    # -- requests

    def get(self, path: str, *, accept: tuple[int, ...] = ()) -> Any:
        """Returns the JSON at a path.

        Args:
            path: Below the service's address.
            accept: Statuses that count beside 200, unless the answer is an error's envelope.

        Raises:
            ServiceFault: No answer, or another one.
        """
        with self._send("GET", path, None, self._timeout) as answer:
            body = _read(answer)
            if answer.status_code != 200 and answer.status_code not in accept:
                raise self._refusal(answer, body)
            value = self._parse(path, body)
            if answer.status_code != 200 and isinstance(value, dict) and value.get("error"):
                raise self._refusal(answer, body)
            return value

    def read(self, path: str) -> bytes:
        """Returns the body at a path. Raises ServiceFault, as `get`."""
        with self._send("GET", path, None, self._timeout) as answer:
            body = _read(answer)
            if answer.status_code != 200:
                raise self._refusal(answer, body)
            return body

    def post(self, path: str, request: dict[str, Any]) -> Any:
        """Returns the JSON that a model answers. Raises ServiceFault, as `get`."""
        with self._send("POST", path, request, self._slow) as answer:
            body = _read(answer)
            if answer.status_code != 200:
                raise self._refusal(answer, body, request.get("model"))
            return self._parse(path, body)

    def _parse(self, path: str, body: bytes) -> Any:
        try:
            return json.loads(body)
        except ValueError as error:
            raise self._foreign(f"{path} is not JSON") from error

    @contextlib.contextmanager
    def stream(self, path: str, request: dict[str, Any]) -> Iterator[Iterator[dict[str, Any]]]:
        """Yields the events of a model's answer as they come; leaving the context ends the work.

        Raises:
            ServiceFault: No answer, an error in its place, or an error event.
        """
        with self._send("POST", path, {**request, "stream": True}, self._slow) as answer:
            if answer.status_code != 200:
                raise self._refusal(answer, _read(answer), request.get("model"))
            if "text/event-stream" not in answer.headers.get("content-type", ""):
                raise self._foreign(f"{path} is not an event stream")
            yield self._events(answer)

    def _events(self, answer: httpx.Response) -> Iterator[dict[str, Any]]:
        reader = EventSplitter()
        for data in chain.from_iterable(map(reader.feed, answer.iter_raw())):
            if data == DONE:
                return
            try:
                event = json.loads(data)
            except ValueError as error:
                raise self._foreign("an event is not JSON") from error
            if not isinstance(event, dict):
                raise self._foreign("an event is not a JSON object")
            if event.get("error"):
                raise describe_refusal(self.address, 200, data, bool(self._key))
            yield event

    @contextlib.contextmanager
    def _send(
        self, method: str, path: str, content: Any, timeout: httpx.Timeout
    ) -> Iterator[httpx.Response]:
        import httpx

        url = f"{self.address.url}{path}"
        try:
            with self._http.stream(method, url, json=content, timeout=timeout) as answer:
                yield answer
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise no_answer(self.address, error) from error
        except UnicodeEncodeError as error:
            raise no_text("the request", error) from error
        except (EventTooLargeError, AnswerTooLargeError) as error:
            raise self._foreign(str(error)) from error

    # -- errors

    def _foreign(self, what: str) -> ServiceFault:
        return ServiceFault(
            f"{self.address.shown}: {what}; is that the address of the service? "
            f"(from {self.address.source})"
        )

    def _refusal(
        self, answer: httpx.Response, body: bytes, model: str | None = None
    ) -> ServiceFault:
        status = answer.status_code
        names = self.names() if model is not None and status == 404 else []
        return describe_refusal(self.address, status, body, bool(self._key), model, names)

    # -- models

    def entries(self) -> list[dict[str, Any]]:
        """Returns the entries of `/v1/models`, as any server with the OpenAI API gives them.

        Raises:
            ServiceFault: The service does not answer, or lists no models.
        """
        answer = self.get("/v1/models")
        data = answer.get("data") if isinstance(answer, dict) else None
        if not isinstance(data, list):
            raise self._foreign("/v1/models does not list models")
        return [
            entry
            for entry in data
            if isinstance(entry, dict)
            and isinstance(name := entry.get("id"), str)
            and clean(name) == name  # or it is no name, and a terminal would obey it
        ]

    def names(self) -> list[str]:
        """Returns the names of all models and adapters; empty where they are not known."""
        try:
            return [entry["id"] for entry in self.entries()]
        except ServiceFault:
            return []


class AnswerTooLargeError(ValueError):
    """An answer has more than `MAX_ANSWER_BYTES`."""


def _read(answer: httpx.Response) -> bytes:
    body = bytearray()
    for piece in answer.iter_raw():
        body += piece
        if len(body) > MAX_ANSWER_BYTES:
            raise AnswerTooLargeError(f"an answer has more than {MAX_ANSWER_BYTES} bytes")
    return bytes(body)


def model_path(name: str) -> str:
    """Returns the path of a model's own description."""
    check_text(name, "the model's name")
    return f"/v1/models/{quote(name, safe='')}"
