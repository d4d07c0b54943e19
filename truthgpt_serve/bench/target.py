"""The server that is measured: its address, model and API key, and what it says of itself."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from truthgpt_serve.cluster.defaults import DEFAULT_URL, KEY_VARIABLE
from truthgpt_serve.errors import TruthGPTError

_LIST_TIMEOUT_S = 30.0
_HIDDEN = "[API key]"


class BenchError(TruthGPTError):
    """What was asked for cannot be done: a file or an address is wrong."""


class TargetError(BenchError):
    """The server is not there, or does not answer as it should."""


def normalize_url(url: str) -> str:
    """Returns an address without its last slash and without `/v1`.

    Raises:
        BenchError: It is no address of HTTP, or holds a password or a query.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError as error:
        raise BenchError(f"the address {url!r} is not valid: {error}") from None
    if parts.username or parts.password:
        raise BenchError(f"the address of {host} holds a user's name: give a key by {KEY_VARIABLE}")
    if parts.scheme not in ("http", "https") or not host or parts.query or parts.fragment:
        raise BenchError(f"the address {url!r} must look like {DEFAULT_URL}")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, slots=True)
class Target:
    """One server.

    Attributes:
        url: Its address, as `normalize_url` returns it.
        model: The model name that requests carry.
        key: The API key, or None.
        verify: Whether its certificate is checked.
    """

    url: str
    model: str = ""
    key: str | None = field(default=None, repr=False)
    verify: bool = True

    def session(self, timeout_s: float, connect_timeout_s: float) -> aiohttp.ClientSession:
        """Returns a session that keeps as many connections as there are requests."""
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=60, ssl=self.verify),
            headers={"authorization": f"Bearer {self.key}"} if self.key else None,
            timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=connect_timeout_s),
            trust_env=not _is_loopback(self.url),  # no proxy knows this machine's own address
        )

    def conceal(self, text: str) -> str:
        """Returns a server's text without the API key, should it have repeated that."""
        return text.replace(self.key, _HIDDEN) if self.key else text

    async def models(self) -> list[dict[str, Any]]:
        """Returns the entries of `/v1/models`.

        Raises:
            TargetError: The server is not there or does not list its models.
        """
        found = await self._ask("GET", "/v1/models", None)
        entries = found.get("data") if isinstance(found, dict) else None
        if not isinstance(entries, list):
            raise TargetError(f"{self.url}/v1/models lists no models: name one with --model")
        return [item for item in entries if isinstance(item, dict) and item.get("id")]

    async def tokenize(self, text: str) -> list[int]:
        """Returns the token ids of a text, by the server's `/tokenize`, as vLLM has it.

        Raises:
            TargetError: The server has no such route for this model.
        """
        body = {"model": self.model, "prompt": text, "add_special_tokens": False}
        try:
            found = await self._ask("POST", "/tokenize", body)
        except TargetError as error:
            raise TargetError(
                f"--unit tokens needs the route /tokenize: {error.message}"
            ) from error
        tokens = found.get("tokens") if isinstance(found, dict) else None
        if not isinstance(tokens, list) or not tokens:
            raise TargetError(f"{self.url}/tokenize returns no `tokens`: use --unit words")
        return [token for token in tokens if isinstance(token, int)]

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        place = self.url + path
        try:
            async with (
                self.session(_LIST_TIMEOUT_S, _LIST_TIMEOUT_S) as session,
                session.request(method, place, json=body) as response,
            ):
                if response.status == 200:
                    return await response.json(content_type=None)
                status, text = response.status, (await response.text(errors="replace"))[:300]
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            reason = str(error) or f"no answer within {_LIST_TIMEOUT_S:g} s"
            raise TargetError(self.conceal(f"{place}: {reason}")) from error
        raise TargetError(self.conceal(f"{place} answered {status}: {text}"))


def choose_models(entries: Sequence[dict[str, Any]], endpoint: str) -> list[str]:
    """Returns the names of models that may answer an endpoint, the likeliest first.

    A service that says each model's `task` is believed; adapters and aliases come after models.
    """
    wanted = {"embeddings": "embedding", "images": "image-generation"}
    task = wanted.get(endpoint, "text-generation")
    fitting = [entry for entry in entries if entry.get("task") in (None, task)]
    fitting.sort(key=lambda entry: bool(entry.get("parent") or entry.get("alias_of")))
    return [str(entry["id"]) for entry in fitting]
