"""Holds requests to the limits of what they use: tokens, and the work of images.

Stands where a body is read whole and in time, behind the queue: a request counts with an estimate,
and with what it used as soon as that is known. An answer that has begun is never cut.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from truthgpt_serve.access.estimate import MAX_READ_BYTES, TokenEstimate
from truthgpt_serve.access.identity import Identity, identity_of
from truthgpt_serve.access.meter import METERED_KEY, Metered
from truthgpt_serve.access.quota import Quota, Reservation
from truthgpt_serve.access.units import IMAGES, TOKENS, Unit
from truthgpt_serve.http.asgi import (
    READS,
    Message,
    Receive,
    Scope,
    Send,
    body_of,
    header,
    relative_path,
)

_FAILED, _ERROR = 400, 500
_UNCOUNTED = frozenset(("/tokenize", "/detokenize", "/v1/messages/count_tokens"))
"""Routes that say how many tokens there are, and use none."""


class TokenQuota:
    """An application whose requests count with what they use.

    Args:
        app: The application; something around it answers the errors that this raises.
        quota: The limits of all keys.
    """

    def __init__(self, app: Any, quota: Quota) -> None:
        self._app = app
        self._quota = quota
        self._estimate = TokenEstimate()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection.

        Raises:
            RateLimitError: The key has used too much.
        """
        identity = identity_of(scope)
        metered: Metered | None = scope.get(METERED_KEY)
        if identity is None or metered is None or scope.get("method", "GET") in READS:
            await self._app(scope, receive, send)
            return
        counts_tokens = self._quota.is_limited(identity, TOKENS)
        counts_tokens &= relative_path(scope) not in _UNCOUNTED
        if not counts_tokens and not self._quota.is_limited(identity, IMAGES):
            await self._app(scope, receive, send)
            return
        request = _Request(identity, metered)
        if counts_tokens:
            whole = body_of(receive)
            if whole is None:
                amount, receive = await self._read(identity, scope, receive)
            else:
                amount = self._estimate.estimate(identity.name, whole, len(whole))
                del whole  # the model works for long
            request.tokens = await self._reserve(request, TOKENS, amount)
        await self._serve(request, scope, receive, send)

    async def _read(
        self, identity: Identity, scope: Scope, receive: Receive
    ) -> tuple[float, Receive]:
        """Returns how many tokens a request may use whose body comes, and what gives its body."""
        body = _Body(receive)
        await body.read()
        whole, size = body.whole(), body.num_bytes
        if whole is None:
            size = max(size, _content_length(scope))
        return self._estimate.estimate(identity.name, whole, size), body.receive

    async def _serve(self, request: _Request, scope: Scope, receive: Receive, send: Send) -> None:
        request.metered.usage.reserve_images = partial(self._reserve_images, request)
        has_raised = False
        try:
            await self._app(scope, receive, send)
        except Exception:
            has_raised = True
            raise
        finally:
            self._settle(request, _ERROR if has_raised else request.metered.usage.status)

    def _settle(self, request: _Request, status: int) -> None:
        """Has a request count with what it used.

        One whose client left before the answer began counts with its estimate at least: nobody
        knows how far an engine came with it.
        """
        usage, identity = request.metered.usage, request.identity
        failed = status >= _FAILED
        usage.finish(failed=failed)
        usage.reserve_images = None  # else the two hold each other
        if request.images is not None and (usage.megapixel_steps or failed):
            request.images.settle(usage.megapixel_steps)
        if request.tokens is None:
            return
        new = usage.prompt_tokens - usage.cached_tokens
        used = new + usage.completion_tokens + identity.cached_token_weight * usage.cached_tokens
        # A model that does not count its tokens leaves the estimate.
        is_told = bool(used or usage.images or usage.audio_s)
        is_known = failed or (is_told and status)
        if is_known or used > request.tokens.amount:
            request.tokens.settle(used)
        if used:
            self._estimate.learn(identity.name, usage.prompt_tokens, usage.completion_tokens)

    async def _reserve_images(self, request: _Request, amount: float) -> None:
        if request.images is None:
            request.images = await self._reserve(request, IMAGES, amount)

    async def _reserve(self, request: _Request, unit: Unit, amount: float) -> Reservation | None:
        """Counts what a request may use, and says in its answer what is left."""
        found = await self._quota.reserve(request.identity, unit, amount)
        if found is not None:
            request.metered.add_headers(found.headers)
        return found


class _Request:
    """One request that counts with an estimate.

    Attributes:
        tokens: Its estimate of tokens, or None without a limit.
        images: Its images' work, or None without a limit, or before it is known.
    """

    __slots__ = ("identity", "images", "metered", "tokens")

    def __init__(self, identity: Identity, metered: Metered) -> None:
        self.identity = identity
        self.metered = metered
        self.tokens: Reservation | None = None
        self.images: Reservation | None = None


class _Body:
    """The beginning of a body, which is read before and given again.

    Attributes:
        num_bytes: Bytes that were read.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._messages: list[Message] = []
        self._more = True
        self.num_bytes = 0

    async def read(self) -> None:
        """Reads as much as counts."""
        while self._more and self.num_bytes <= MAX_READ_BYTES:
            message = await self._receive()
            self._messages.append(message)
            self._more = message["type"] == "http.request" and message.get("more_body", False)
            self.num_bytes += len(message.get("body", b""))

    def whole(self) -> bytes | None:
        """Returns the body if it was read to its end, and is not too long."""
        if self._more or self.num_bytes > MAX_READ_BYTES:
            return None
        if len(self._messages) == 1:
            body: bytes = self._messages[0].get("body", b"")
            return body
        return b"".join(message.get("body", b"") for message in self._messages)

    async def receive(self) -> Message:
        """Returns the next message, as ASGI's `receive` does."""
        return self._messages.pop(0) if self._messages else await self._receive()


def _content_length(scope: Scope) -> int:
    value = header(scope["headers"], b"content-length") or b""
    return int(value) if value.isdigit() and len(value) < 16 else 0
