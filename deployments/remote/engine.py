"""Sends requests to the remote server by aiohttp, and raises the product's errors."""

from __future__ import annotations

import logging
import os
import ssl
import time
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, Self

import aiohttp
from yarl import URL

from deployments.remote.address import Addresses
from deployments.remote.config import RemoteSettings
from deployments.remote.decoding import DecodedBody, find_coding, without_coding
from deployments.remote.headers import headers_down
from truthgpt_serve.errors import (
    ConfigError,
    DeadlineError,
    Fault,
    ServerError,
    TruthGPTError,
    UpstreamError,
)
from truthgpt_serve.errors.fetching import describe_fetch
from truthgpt_serve.http.asgi import Headers

logger = logging.getLogger(__name__)

IDLE_TIMEOUT_S = 15.0
"""How long a connection that carries nothing is kept."""
STALE_WITHIN_S = 1.0
"""A kept connection that is lost later than this after a request was sent on it: the request may be
worked on already, so it is not sent a second time."""
TELL_EVERY_S = 10.0
"""How often a fault of the other server is logged: it may be one of each request."""
PIECE_BYTES = 256 * 1024
"""A larger body is sent in pieces, so that one does not keep the event loop from all others."""

_NOT_ADDED = ("Accept", "Accept-Encoding", "Content-Type", "User-Agent")
"""Headers that aiohttp would make up where the client sent none."""


class Answer:
    """The remote server's answer, its body still on the way; `close` it in any case.

    Attributes:
        status: The status code.
        headers: Those that a client may get, names in lower case.
        is_decoded: Whether it came compressed; what is read of it is not.

    Raises:
        UpstreamError: It is compressed in a way that cannot be read.
    """

    def __init__(self, response: aiohttp.ClientResponse, remote: Remote) -> None:
        self._response = response
        self._remote = remote
        self.status = response.status
        self.headers: Headers = headers_down(response.raw_headers)
        coding = find_coding(self.headers, remote.label)
        self.is_decoded = bool(coding)
        if coding:
            self.headers = without_coding(self.headers)
            self._read = DecodedBody(coding, self._read_raw, remote.label).read
        else:
            self._read = self._read_raw

    async def read(self) -> tuple[bytes, bool]:
        """Returns the bytes that have arrived, at least one, and whether more follow.

        `(b"", False)` is an end without bytes.

        Raises:
            TruthGPTError: The answer broke off, or the next piece did not come in time.
        """
        return await self._read()

    async def _read_raw(self) -> tuple[bytes, bool]:
        content = self._response.content
        try:
            data = await content.readany()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._remote.translate(error) from error
        return data, not content.at_eof()

    async def read_all(self, max_bytes: int) -> bytes:
        """Returns the whole body. Raises UpstreamError when it is longer than `max_bytes`."""
        body, more = bytearray(), True
        while more:
            data, more = await self.read()
            body += data
            if len(body) > max_bytes:
                raise UpstreamError(f"{self._remote.label} answered more than {max_bytes} bytes")
        return bytes(body)

    def close(self) -> None:
        """Gives the connection back, or closes it at once when the answer is not whole."""
        if self._response.content.at_eof():
            self._response.release()
        else:
            self._response.close()


class Remote:
    """One remote server: its addresses, and connections to it while it is entered.

    Args:
        addresses: Where it is.
        settings: Timeouts, limits and TLS.
        name: The model name, for messages.

    Raises:
        ConfigError: `ca_file` cannot be read.
    """

    def __init__(self, addresses: Addresses, settings: RemoteSettings, name: str) -> None:
        self.addresses = addresses
        self.label = f"The remote server of the model {name!r}"
        self._settings = settings
        self._tls = _create_tls(settings) if addresses.is_encrypted else True
        self._session: aiohttp.ClientSession | None = None
        self._tell_at_s = 0.0

    async def __aenter__(self) -> Self:
        settings = self._settings
        trace = aiohttp.TraceConfig()
        trace.on_connection_reuseconn.append(_note_reuse)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                # One more than requests need, so that a full replica can still ask for health.
                limit=settings.max_connections + 1,
                ssl=self._tls,
                keepalive_timeout=IDLE_TIMEOUT_S,
            ),
            # Cookies of one client's answers must not go out with another's requests.
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            skip_auto_headers=_NOT_ADDED,
            timeout=aiohttp.ClientTimeout(
                total=None,  # the caller's
                connect=settings.connect_timeout_s,  # resolving the name included
                sock_connect=settings.connect_timeout_s,
                sock_read=settings.read_timeout_s,
            ),
            trace_configs=[trace],
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    @property
    def is_open(self) -> bool:
        """Whether requests can be sent."""
        return self._session is not None

    async def send(
        self, method: str, url: str, headers: list[tuple[str, str]], body: bytes = b""
    ) -> Answer:
        """Sends a request; returns the answer as soon as its headers are there.

        A request that a kept connection lost at once, because the server had closed it meanwhile,
        is sent a second time.

        Args:
            method: The HTTP method.
            url: The whole URL, percent-encoded.
            headers: All headers but `host` and `content-length`.
            body: The whole body.

        Raises:
            TruthGPTError: No connection, no answer in time, or one that is not HTTP.
        """
        reused = await self._try(method, url, headers, body)
        if isinstance(reused, Answer):
            return reused
        again = await self._try(method, url, headers, body)
        if isinstance(again, Answer):
            return again
        raise self.translate(again) from None

    async def _try(
        self, method: str, url: str, headers: list[tuple[str, str]], body: bytes
    ) -> Answer | Exception:
        """Returns the answer, or the error by which a kept connection turned out to be stale."""
        if self._session is None:
            raise ServerError("the remote family is closed")
        trace = SimpleNamespace(reused=False)
        sent_at_s = time.monotonic()
        try:
            response = await self._session.request(
                method,
                URL(url, encoded=True),
                headers=[*headers, ("content-length", str(len(body)))] if body else headers,
                data=_pieces(body) if len(body) > PIECE_BYTES else body or None,
                allow_redirects=False,
                trace_request_ctx=trace,
            )
        except (aiohttp.ServerDisconnectedError, aiohttp.ClientOSError) as error:
            if trace.reused and time.monotonic() - sent_at_s < STALE_WITHIN_S:
                return error
            raise self.translate(error) from None
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
            raise self.translate(error) from None
        try:
            return Answer(response, self)
        except BaseException:
            response.close()
            raise

    def translate(self, error: Exception) -> TruthGPTError:
        """Returns the error for a client; the address, which clients must not see, is logged.

        Raise it without its cause, whose text may have a part of the request.
        """
        if time.monotonic() >= self._tell_at_s:
            self._tell_at_s = time.monotonic() + TELL_EVERY_S
            cause = describe_fetch(error)
            logger.info("%s at %s: %s", self.label, self.addresses.origin, cause)
        return _translate(error, self.label, self._settings)


def _translate(error: Exception, label: str, settings: RemoteSettings) -> TruthGPTError:
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        limit_s = settings.connect_timeout_s
        return DeadlineError(f"{label} did not accept a connection within {limit_s:g} s")
    if isinstance(error, TimeoutError):
        return DeadlineError(f"{label} sent nothing for {settings.read_timeout_s:g} s")
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return UpstreamError(
            f"{label} has a certificate that is not accepted: {_tls_reason(error)}"
        )
    if isinstance(error, aiohttp.ClientConnectorSSLError):
        return UpstreamError(f"{label} cannot be reached over TLS")
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return UpstreamError(f"{label} cannot be found: its host name does not resolve")
    if isinstance(error, aiohttp.ClientConnectorError):
        # asyncio's own text has the address.
        number = error.os_error.errno
        reason = os.strerror(number).lower() if number else type(error.os_error).__name__
        return UpstreamError(f"{label} cannot be reached: {reason}")
    if isinstance(error, aiohttp.ClientResponseError):
        return UpstreamError(f"{label} answered something that is not HTTP")
    return UpstreamError(f"{label} closed the connection before its answer was whole")


def _tls_reason(error: aiohttp.ClientConnectorCertificateError) -> str:
    cause = error.certificate_error
    return str(getattr(cause, "verify_message", "") or type(cause).__name__)


def _create_tls(settings: RemoteSettings) -> ssl.SSLContext | bool:
    if not settings.verify_tls:
        return False
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:
        place = "configuration: serving.engine.ca_file"
        message = f"{settings.ca_file!r} cannot be read: {error.strerror or error}"
        fix = "name a PEM file that exists where the replica runs"
        raise ConfigError([Fault(place, message, fix)]) from error


async def _note_reuse(_session: Any, context: SimpleNamespace, _params: Any) -> None:
    context.trace_request_ctx.reused = True


async def _pieces(body: bytes) -> AsyncIterator[memoryview]:
    view = memoryview(body)
    for start in range(0, len(view), PIECE_BYTES):
        yield view[start : start + PIECE_BYTES]
