"""Media that a request names by address, through the connector and from real servers."""

from __future__ import annotations

import asyncio
import base64
import io
import logging
from collections.abc import Iterator
from contextlib import nullcontext
from http import HTTPStatus
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from vllm.connections import HTTPConnection
from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.multimodal.media import AudioMediaIO, ImageMediaIO, MediaIO, VideoMediaIO

from deployments.vllm import media
from deployments.vllm.decoded_pixels import FEW_PIXELS, DecodedPixels
from deployments.vllm.media import ListedMediaConnector, use_listed_media
from deployments.vllm.sharing.round_robin import one_request
from tests.support.image_files import jpeg_of_scans, png_chunk
from tests.support.servers import serve_asgi
from truthgpt_serve.image_files.jpeg import MAX_SCANS


def image_bytes() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (250, 10, 10)).save(buffer, "PNG")
    return buffer.getvalue()


ANSWERS: dict[str, tuple[int, list[tuple[bytes, bytes]], bytes]] = {
    "/image": (200, [(b"content-type", b"image/png")], image_bytes()),
    "/missing": (404, [], b"no"),
    "/broken": (500, [], b"no"),
    "/empty": (200, [], b""),
    "/text": (200, [], b"no image"),
    "/elsewhere": (302, [(b"location", b"/image")], b""),
}


class Source:
    """A server of the answers above."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.paths.append(scope["path"])
        status, headers, body = ANSWERS[scope["path"]]
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": status, "headers": [*headers, length]})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture
def source(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Source, str]]:
    for name in ("VLLM_MEDIA_CONNECTOR", "VLLM_MEDIA_URL_ALLOW_REDIRECTS"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv("VLLM_MEDIA_FETCH_MAX_RETRIES", "1")
    use_listed_media()
    app = Source()
    with serve_asgi(app) as url:
        yield app, url.rpartition(":")[2]


def load(address: str, domains: list[str] | None, *, waits: bool, **kwargs: Any) -> Any:
    own = HTTPConnection()  # vLLM's belongs to one event loop
    connector = ListedMediaConnector(connection=own, allowed_media_domains=domains, **kwargs)
    if waits:
        return connector.load_from_url(address, ImageMediaIO())

    async def main() -> Any:
        try:
            return await connector.load_from_url_async(address, ImageMediaIO())
        finally:
            await (await own.get_async_client()).close()

    return asyncio.run(main())


@pytest.mark.parametrize("waits", [True, False])
def test_a_named_domain_is_fetched_from(source: tuple[Source, str], waits: bool) -> None:
    app, port = source
    found = load(f"http://localhost:{port}/image", ["LOCALHOST"], waits=waits)
    assert found.media.getpixel((3, 3)) == (250, 10, 10)
    assert app.paths == ["/image"]


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:{port}/image",
        "http://localhost@127.0.0.1:{port}/image",
        "http://127.0.0.1:{port}/image?@localhost",
        "http://localhost.:{port}/image",
        "http://[::1]:{port}/image",
        "http://[::ffff:127.0.0.1]:{port}/image",
        "http://[::ffff:7f00:1]:{port}/image",
        "http://2130706433:{port}/image",
        "http://0177.0.0.1:{port}/image",
        "http://0x7f.1:{port}/image",
        "http://127.1:{port}/image",
        "http://127.0.0.1:{port}\\@localhost/image",
        "http://127.0.0.1:{port}#@localhost/image",
        "http://localhost:x@127.0.0.1:{port}/image",
        "http:127.0.0.1:{port}/image",
    ],
)
def test_nothing_else_is_asked(source: tuple[Source, str], address: str, waits: bool) -> None:
    app, port = source
    with pytest.raises(VLLMValidationError, match="allowed_media_domains"):
        load(address.format(port=port), ["localhost"], waits=waits)
    with pytest.raises(VLLMValidationError, match="allowed_media_domains"):
        load(address.format(port=port), None, waits=waits)
    assert app.paths == []


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("path", ["/missing", "/broken", "/empty", "/text", "/elsewhere"])
def test_what_a_source_answers_is_an_error_of_the_request(
    source: tuple[Source, str], path: str, waits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    app, port = source
    with pytest.raises(VLLMValidationError) as caught:
        load(f"http://localhost:{port}{path}?sign=s3cret", ["localhost"], waits=waits)
    assert "a medium could not be read" in caplog.text
    assert "s3cret" not in caplog.text
    message = str(caught.value)
    assert "`image_url`" in message
    told = {"/missing": "HTTP 404", "/broken": "it answered 500"}.get(path, "cannot be read")
    assert told in message or (waits and "fetch" in message), message
    assert "value=" not in message
    assert app.paths == [path]


@pytest.mark.parametrize("waits", [True, False])
def test_a_source_that_is_away_is_an_error_of_the_request(
    source: tuple[Source, str], waits: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(VLLMValidationError, match="nothing could be fetched from 'localhost'"):
        load("http://localhost:9/image?sign=s3cret", ["localhost"], waits=waits)
    assert "a medium could not be read" in caplog.text
    assert "s3cret" not in caplog.text


def test_what_signs_an_address_is_in_no_line_of_the_engine(
    source: tuple[Source, str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    app, port = source
    monkeypatch.setenv("VLLM_MEDIA_FETCH_MAX_RETRIES", "2")
    engine = logging.getLogger("vllm.connections")
    engine.addHandler(caplog.handler)
    with pytest.raises(VLLMValidationError):
        load(f"http://localhost:{port}/broken?sign=s3cret", ["localhost"], waits=False)
    engine.removeHandler(caplog.handler)
    assert "HTTP fetch failed for http://localhost" in caplog.text
    assert "s3cret" not in caplog.text
    assert app.paths == ["/broken"] * 2


READERS: dict[str, MediaIO[Any]] = {
    "image": ImageMediaIO(),
    "audio": AudioMediaIO(),
    "video": VideoMediaIO(ImageMediaIO(), num_frames=4),
}
BROKEN = base64.b64encode(b"\x89PNG\r\n\x1a\n" + bytes(30)).decode()


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize(
    "address",
    [
        "data:",
        "data:,",
        "data:x/x,abc",
        "data:x/x;base64,",
        "data:x/x;base64,AAAA",
        "data:x/x;base64,***",
        "data:video/jpeg;base64,AAAA",
        f"data:x/x;base64,{BROKEN}",
        "{url}/missing",
        "{url}/text",
    ],
)
def test_what_cannot_be_read_is_an_error_of_the_request(
    source: tuple[Source, str], kind: str, address: str
) -> None:
    connector = ListedMediaConnector(allowed_media_domains=["localhost"])
    url = f"http://localhost:{source[1]}"
    with pytest.raises(VLLMValidationError) as caught:
        connector.load_from_url(address.format(url=url), READERS[kind])
    message = str(caught.value)
    assert f"`{kind}_url`" in message
    assert "object at" not in message
    assert "metadata" not in message  # of Python's packages


@pytest.mark.parametrize("sample", [np.nan, np.inf])
@pytest.mark.parametrize("of_request", [True, False])
def test_samples_that_are_no_numbers_are_refused(sample: float, *, of_request: bool) -> None:
    buffer = io.BytesIO()
    samples = np.full(16000, sample, np.float32)
    soundfile.write(buffer, samples, 16000, format="WAV", subtype="FLOAT")
    url = f"data:audio/wav;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    request = one_request() if of_request else nullcontext()
    with request, pytest.raises(VLLMValidationError, match="samples that are not finite"):
        ListedMediaConnector().load_from_url(url, AudioMediaIO())


def test_files_come_from_the_named_folder_only(tmp_path: Path) -> None:
    inside, outside = tmp_path / "media", tmp_path / "outside.png"
    inside.mkdir()
    for path in (inside / "a.png", outside):
        path.write_bytes(image_bytes())
    (inside / "link.png").symlink_to(outside)
    folder = {"allowed_local_media_path": str(inside)}
    assert load(f"file://{inside}/a.png", None, waits=True, **folder).media.size == (8, 6)
    for address in (outside, inside / "link.png", inside / ".." / "outside.png", inside / "none"):
        with pytest.raises(VLLMValidationError, match="no such file") as caught:
            load(f"file://{address}", None, waits=True, **folder)
        assert str(tmp_path) not in str(caught.value)


def test_data_needs_no_source() -> None:
    data = base64.b64encode(image_bytes()).decode()
    assert load(f"data:image/png;base64,{data}", None, waits=False).media.size == (8, 6)


@pytest.mark.parametrize("waits", [True, False])
def test_a_jpeg_of_very_many_scans_is_not_decoded(*, waits: bool) -> None:
    for number in (MAX_SCANS, MAX_SCANS + 1):
        data = base64.b64encode(jpeg_of_scans(number)).decode()
        address = f"data:image/png;base64,{data}"
        if number == MAX_SCANS:
            assert load(address, None, waits=waits).media.size == (16, 16)
            continue
        with pytest.raises(VLLMValidationError, match="cannot be read: it is a JPEG of more than"):
            load(address, None, waits=waits)


MANY_CHUNKS = image_bytes()[:33] + png_chunk(b"abCd") * 3000 + image_bytes()[33:]
ANSWERS["/chunks"] = (200, [(b"content-type", b"image/png")], MANY_CHUNKS)
FAULT = "cannot be read: it is a PNG of more than 2000 chunks"
HIDDEN = "the folder that `serving.engine.allowed_local_media_path` names has no such file that can"


@pytest.mark.parametrize("waits", [True, False])
def test_an_image_of_very_many_chunks_is_not_decoded(
    source: tuple[Source, str], tmp_path: Path, *, waits: bool
) -> None:
    file = tmp_path / "image.png"
    file.write_bytes(MANY_CHUNKS)
    data = base64.b64encode(MANY_CHUNKS).decode()
    for address, fault in (
        (f"data:image/png;base64,{data}", FAULT),
        (f"http://localhost:{source[1]}/chunks", FAULT),
        (f"file://{file}", HIDDEN),  # of which clients learn nothing
    ):
        with pytest.raises(VLLMValidationError, match=f"`image_url`: .*{fault}"):
            load(address, ["localhost"], waits=waits, allowed_local_media_path=str(tmp_path))


def test_frames_of_a_video_are_looked_at_too() -> None:
    good, bad = (base64.b64encode(each).decode() for each in (image_bytes(), MANY_CHUNKS))
    for frames, fits in ((f"{good},{good}", True), (f"{good},{bad}", False)):
        connector = ListedMediaConnector()
        reader = VideoMediaIO(ImageMediaIO(), num_frames=2)
        address = f"data:video/jpeg;base64,{frames}"
        if fits:
            assert connector.load_from_url(address, reader).media[0].shape == (2, 6, 8, 3)
            continue
        with pytest.raises(VLLMValidationError, match=f"`video_url`: .*{FAULT}"):
            connector.load_from_url(address, reader)


def test_images_are_of_known_formats() -> None:
    for form, fits in (("GIF", True), ("TIFF", True), ("WEBP", True), ("PPM", False)):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 6)).save(buffer, form)
        address = f"data:image/x;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        if fits:
            assert load(address, None, waits=True).media.size == (8, 6)
            continue
        with pytest.raises(VLLMValidationError, match="cannot be read: it is not a PNG, JPEG, W"):
            load(address, None, waits=True)


def white(width: int, height: int) -> str:
    buffer = io.BytesIO()
    Image.new("1", (width, height)).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


@pytest.mark.parametrize("waits", [True, False])
def test_images_of_a_request_share_one_limit(
    monkeypatch: pytest.MonkeyPatch, *, waits: bool
) -> None:
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", "1000")
    for _ in range(2):
        with one_request():  # each message of a chat has a connector of its own
            assert load(white(30, 20), None, waits=waits).media.size == (30, 20)
            for _ in range(2):
                with pytest.raises(VLLMValidationError, match="more than 1000 pixels together"):
                    load(white(30, 20), None, waits=waits)
            assert load(white(20, 20), None, waits=waits).media.size == (20, 20)
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", "0")
    with one_request():
        assert load(white(60, 60), None, waits=waits).media.size == (60, 60)


async def test_an_image_without_room_is_answered_429(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = DecodedPixels(FEW_PIXELS // 2)
    monkeypatch.setattr(media, "_pixels", lambda: pixels)
    connector = ListedMediaConnector()
    with one_request():
        image: Any = await connector.fetch_image_async(white(4000, 3000))
    with one_request(), pytest.raises(GracefulHTTPError) as caught:
        await connector.fetch_image_async(white(4000, 3000))
    assert caught.value.http_status is HTTPStatus.TOO_MANY_REQUESTS
    del image
    with one_request():
        assert await connector.fetch_image_async(white(4000, 3000))


def test_what_pillow_does_not_decode_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(VLLMValidationError, match=r"too many pixels: .*\(2500 pixels\)"):
        load(white(50, 50), None, waits=True)


def test_frames_share_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MAX_IMAGE_PIXELS", "100")
    frames = ",".join([base64.b64encode(image_bytes()).decode()] * 3)
    reader = VideoMediaIO(ImageMediaIO(), num_frames=3)
    with one_request(), pytest.raises(VLLMValidationError, match="more than 100 pixels together"):
        ListedMediaConnector().load_from_url(f"data:video/jpeg;base64,{frames}", reader)
