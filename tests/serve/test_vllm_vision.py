"""Images in chats, with a model that sees, on vLLM."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.serve.vllm_process import Server, make_config, serve
from tests.support.servers import serve_asgi
from tests.support.tiny_vision import make_tiny_vision

pytestmark = pytest.mark.timeout(800)
TEXT = {"type": "text", "text": "Hi"}
MAX_PIXELS = 178_956_970


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    weights = make_tiny_vision(tmp_path_factory.mktemp("vision") / "vision")
    config = make_config(weights.parent)
    config["model"] = {"name_or_path": str(weights)}
    with serve(config, tmp_path_factory.mktemp("server") / "log") as server:
        yield server


def file_of(mode: str, form: str, width: int = 40, height: int = 30) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, (width, height)).save(buffer, form)
    return buffer.getvalue()


def part_of(data: bytes) -> dict[str, Any]:
    url = f"data:image/x;base64,{base64.b64encode(data).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


def ask(
    server: Server, *messages: list[dict[str, Any]], path: str = "/v1/chat/completions"
) -> httpx.Response:
    chat = [{"role": "user", "content": [*parts, TEXT]} for parts in messages]
    body = {"model": "tiny", "messages": chat, "max_tokens": 2}
    return httpx.post(f"{server.url}{path}", json=body, timeout=90)


@pytest.mark.parametrize(
    ("form", "mode"),
    [("JPEG", "CMYK"), ("PNG", "I;16"), ("PNG", "LA"), ("GIF", "P"), ("TIFF", "F")],
)
def test_images_of_every_kind_are_seen(server: Server, form: str, mode: str) -> None:
    answer = ask(server, [part_of(file_of(mode, form))])
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/tokenize"])
def test_nothing_is_fetched_for_an_image_in_memory(
    server: Server, tmp_path: Path, path: str
) -> None:
    image, paths = file_of("L", "PNG"), []
    file = tmp_path / "image.png"
    file.write_bytes(image)

    async def source(scope: Any, receive: Any, send: Any) -> None:
        paths.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": image})

    with serve_asgi(source) as url:
        for value in (f"{url}/image", [f"{url}/image"], str(file), "x", 5, {"media": url}):
            for kind in ({"type": "image_pil"}, {}):
                answer = ask(server, [{**kind, "image_pil": value}], path=path)
                assert answer.status_code == 400, answer.text
                assert answer.json()["error"]["param"] == "image_pil", answer.text
    assert paths == []


def test_images_of_a_chat_share_one_limit_of_pixels(server: Server) -> None:
    large = part_of(file_of("1", "PNG", 10_000, 6_000))
    for messages in ([[large] * 3], [[large]] * 3):  # three have 180 million
        answer = ask(server, *messages)
        assert answer.status_code == 400, answer.text
        message = answer.json()["error"]["message"]
        assert f"more than {MAX_PIXELS} pixels together" in message
    answer = ask(server, [part_of(file_of("1", "PNG", 20_000, 20_000))])
    assert answer.status_code == 400, answer.text
    assert "too many pixels" in answer.json()["error"]["message"]
    assert ask(server, [part_of(file_of("RGB", "PNG"))]).status_code == 200
