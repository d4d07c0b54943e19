"""Fetches images, videos and audio that a request names by address, from allowed sources only.

vLLM's own connector fetches from everywhere, so that a client could read what only the service's
machine reaches; here nothing is fetched unless the model's YAML names its source.
"""

from __future__ import annotations

import functools
import io
import logging
import os
import re
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from aiohttp import ClientError, ClientResponseError
from PIL import Image
from requests import RequestException
from urllib3.util import parse_url
from vllm import envs
from vllm.connections import HTTPConnection
from vllm.exceptions import GracefulHTTPError, VLLMUnprocessableEntityError, VLLMValidationError
from vllm.multimodal.image import open_image
from vllm.multimodal.media import (
    MEDIA_CONNECTOR_REGISTRY,
    AudioMediaIO,
    ImageMediaIO,
    MediaConnector,
    MediaIO,
    VideoMediaIO,
)

from deployments.vllm.decoded_pixels import DecodedPixels, pixels_of_machine
from deployments.vllm.sharing.round_robin import OneRequest, current_request
from truthgpt_serve.errors.fetching import describe_fetch, hide_queries
from truthgpt_serve.image_files.bounds import find_fault

CONNECTOR = "truthgpt"
"""The connector's name among vLLM's."""

_DOMAINS_KEY = "serving.engine.allowed_media_domains"
_FOLDER_KEY = "serving.engine.allowed_local_media_path"
_OBJECT = re.compile(r" <[^>]* object at 0x[0-9a-f]+>")
logger = logging.getLogger(__name__)


def use_listed_media() -> None:
    """Has vLLM fetch media only from sources that the model's YAML names, in this process.

    A redirect leads elsewhere without a check, so none is followed. What signs an address stays out
    of vLLM's log.
    """
    logging.getLogger(HTTPConnection.__module__).addFilter(hide_queries)
    os.environ["VLLM_MEDIA_CONNECTOR"] = CONNECTOR
    os.environ["VLLM_MEDIA_URL_ALLOW_REDIRECTS"] = "0"


@MEDIA_CONNECTOR_REGISTRY.register(CONNECTOR)
class ListedMediaConnector(MediaConnector):
    """vLLM's connector for media, whose default source is the request alone (`data:`)."""

    def __init__(
        self, *args: Any, allowed_media_domains: list[str] | None = None, **kwargs: Any
    ) -> None:
        domains = [domain.lower() for domain in allowed_media_domains or []]
        super().__init__(*args, allowed_media_domains=domains, **kwargs)

    def load_from_url(
        self, url: str, media_io: MediaIO[Any], *, fetch_timeout: int | None = None
    ) -> Any:
        """Returns the medium at an address; arguments as in vLLM's.

        Raises:
            VLLMValidationError: The model's YAML does not name the source, or what
                comes from it cannot be read.
        """
        self._check(url, media_io)
        with _reading(url, media_io):
            reader = _checked(media_io)
            return super().load_from_url(url, reader, fetch_timeout=fetch_timeout)

    async def load_from_url_async(
        self, url: str, media_io: MediaIO[Any], *, fetch_timeout: int | None = None
    ) -> Any:
        """Does the same without blocking."""
        self._check(url, media_io)
        with _reading(url, media_io):
            reader = _checked(media_io)
            return await super().load_from_url_async(url, reader, fetch_timeout=fetch_timeout)

    def _check(self, url: str, media_io: MediaIO[Any]) -> None:
        scheme, host = _split(url)
        if scheme == "data":
            return
        if scheme in ("http", "https"):
            if host in self.allowed_media_domains:
                return
            domains = ", ".join(self.allowed_media_domains) or "none"
            _refuse(
                media_io,
                f"this model fetches media only from domains that its YAML names in "
                f"`{_DOMAINS_KEY}` ({domains}), not from {_shown(host)}; send the content as a "
                "data: URL",
            )
        if scheme != "file":
            _refuse(media_io, "must be a data:, http: or https: URL")
        if self.allowed_local_media_path is None:
            _refuse(
                media_io,
                f"this model reads no files (`{_FOLDER_KEY}`); send the content as a data: URL",
            )


class _CheckedImages(MediaIO[Any]):
    """Reads images as another reader does, but for those that take far more than their size.

    That is time, and memory: a file of 160 KB may have 178 million pixels, of which each takes
    some 16 bytes until the model has seen it. So vLLM's limit for one image holds for all images
    of a request together.

    Args:
        reader: The other reader.
        request: Whose images they are; None where nobody knows.
    """

    def __init__(self, reader: MediaIO[Any], request: OneRequest | None) -> None:
        self._reader = reader
        self._request = request

    def load_bytes(self, data: bytes) -> Any:
        """Returns an image.

        Raises:
            ValueError: It is not read.
            GracefulHTTPError: There is no room for it now.
        """
        if (fault := find_fault(data, only_known=True)) is not None:
            raise ValueError(f"it {fault}")
        limit: int = envs.VLLM_MAX_IMAGE_PIXELS
        of_request = num_pixels = _count_pixels(data)
        if self._request is not None and limit > 0:
            of_request = self._request.add_pixels(num_pixels, limit)
        with _pixels().room(num_pixels, of_request) as decoded:
            loaded = self._reader.load_bytes(data)
            decoded.append(loaded.media)
        return loaded

    def load_base64(self, media_type: str, data: str) -> Any:
        """Does the same for base64."""
        return self.load_bytes(b64decode(data, validate=True))

    def load_file(self, filepath: Path) -> Any:
        """Does the same for a file."""
        return self.load_bytes(filepath.read_bytes())

    def get_max_bytes(self) -> int | None:
        """Returns the other reader's limit."""
        limit: int | None = self._reader.get_max_bytes()
        return limit


class _CheckedAudio(MediaIO[Any]):
    """Reads recordings as another reader does, but none of NaN, nor more than a request may have.

    A file of 28 KB may have ten minutes of silence, of which vLLM bounds each one alone. One is
    counted when it is decoded: until the sum is too much, as many run over as there are threads.

    Args:
        reader: The other reader.
        request: Whose recordings they are; None where nobody knows.
    """

    def __init__(self, reader: AudioMediaIO, request: OneRequest | None) -> None:
        self._reader = reader
        self._request = request

    def load_bytes(self, data: bytes) -> Any:
        """Returns samples and their rate. Raises ValueError for too many."""
        return self._count(lambda: self._reader.load_bytes(data))

    def load_base64(self, media_type: str, data: str) -> Any:
        """Does the same for base64."""
        return self._count(lambda: self._reader.load_base64(media_type, data))

    def load_file(self, filepath: Path) -> Any:
        """Does the same for a file."""
        return self._count(lambda: self._reader.load_file(filepath))

    def get_max_bytes(self) -> int | None:
        """Returns the other reader's limit."""
        limit: int = self._reader.get_max_bytes()
        return limit

    def _count(self, load: Callable[[], Any]) -> Any:
        limit: int = envs.VLLM_MAX_AUDIO_DECODE_BYTES
        if self._request is None:
            return _finite(load())
        self._request.add_samples(0, limit)
        loaded = load()
        self._request.add_samples(loaded[0].nbytes, limit)
        return _finite(loaded)


def _finite(loaded: Any) -> Any:
    if not np.isfinite(loaded[0]).all():
        raise ValueError("it has samples that are not finite")
    return loaded


@functools.cache
def _pixels() -> DecodedPixels:
    """Those of this process."""
    return pixels_of_machine()


def _count_pixels(data: bytes) -> int:
    """Returns how many pixels an image has, without decoding it; 0 if its reader will refuse it.

    Raises:
        ValueError: They are more than Pillow decodes.
    """
    try:
        with open_image(io.BytesIO(data)) as image:
            width, height = image.size
    except Image.DecompressionBombError as error:
        raise ValueError(f"it has too many pixels: {error}") from None
    except Exception:  # its reader says why
        return 0
    return int(width * height)


def _checked(media_io: MediaIO[Any]) -> MediaIO[Any]:
    """Returns a reader that refuses images, also frames, and recordings which take too much."""
    request = current_request()  # here, as images are read in other threads
    if isinstance(media_io, ImageMediaIO):
        return _CheckedImages(media_io, request)
    if isinstance(media_io, AudioMediaIO):
        return _CheckedAudio(media_io, request)
    if isinstance(media_io, VideoMediaIO) and isinstance(media_io.image_io, ImageMediaIO):
        media_io.image_io = _CheckedImages(media_io.image_io, request)
    return media_io


@contextmanager
def _reading(url: str, media_io: MediaIO[Any]) -> Iterator[None]:
    """Has whatever a source answers, or a medium holds, be an error of the request that names it.

    Of most that its readers raise vLLM makes 500 or 501, and it names an image whatever it was.
    """
    try:
        yield
    except (VLLMValidationError, GracefulHTTPError):
        raise
    except Exception as error:
        logger.warning("a medium could not be read: %s", describe_fetch(error))
        _refuse(media_io, _cause(url, error))


def _cause(url: str, error: Exception) -> str:
    scheme, host = _split(url)
    if scheme == "file":  # clients must not learn what is in other folders
        return f"the folder that `{_FOLDER_KEY}` names has no such file that can be read"
    if isinstance(error, (OSError, ClientError, RequestException)):
        reason = f"it answered {error.status}" if isinstance(error, ClientResponseError) else ""
        reason = reason or str(error)[:200] or type(error).__name__
        return f"nothing could be fetched from {_shown(host)}: {reason}"
    if isinstance(error, VLLMUnprocessableEntityError):
        return str(error.args[0])  # without its notes, which call every medium an image
    known = isinstance(error, (ValueError, NotImplementedError))
    reason = _OBJECT.sub("", str(error))[:200] if known else "it is not of a known format"
    return f"the content cannot be read: {reason}"


def _split(url: str) -> tuple[str, str]:
    """Returns scheme and host, by the parser whose result vLLM fetches."""
    if url[:5].lower() == "data:":
        return "data", ""
    try:
        parts = parse_url(url)
    except ValueError:
        return "", ""
    return parts.scheme or "", parts.hostname or ""


def _shown(host: str) -> str:
    return repr(host[:100]) if host else "an address without a host"


def _refuse(media_io: MediaIO[Any], message: str) -> NoReturn:
    kind = type(media_io).__name__
    field = next(
        (f"{name.lower()}_url" for name in ("Audio", "Video") if name in kind), "image_url"
    )
    raise VLLMValidationError(f"`{field}`: {message}", parameter=field)
