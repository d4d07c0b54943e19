"""Media that a chat names by address, with a model that hears, on vLLM."""

from __future__ import annotations

import base64
import io
import signal
import threading
import wave
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import soundfile

from tests.serve.vllm_process import Server, alive, descendants, make_config, serve
from tests.support.servers import serve_asgi
from tests.support.tiny_audio import make_tiny_audio

pytestmark = pytest.mark.timeout(800)
KEYS = {
    "http": "serving.engine.allowed_media_domains",
    "file": "serving.engine.allowed_local_media_path",
}


def sound() -> bytes:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(b"\0\1" * 16000)
    return buffer.getvalue()


class Source:
    """A server with a sound at `/sound`, and at `/elsewhere` a redirect to another host's."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.paths.append(scope["path"])
        status, headers, body = 200, [(b"content-type", b"audio/wav")], sound()
        if scope["path"] == "/elsewhere":
            port = scope["server"][1]
            headers, status, body = [(b"location", b"http://127.0.0.1:%d/sound" % port)], 302, b""
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_audio(tmp_path_factory.mktemp("audio") / "audio")


@pytest.fixture(scope="module", params=[None], ids=["none named"])
def server(
    weights: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[tuple[Server, bool]]:
    engine = {"enable_auto_tool_choice": None, "tool_call_parser": None}
    if request.param:
        engine["allowed_media_domains"] = request.param
    config = make_config(weights.parent, engine=engine)
    config["model"] = {"name_or_path": str(weights)}
    with serve(config, tmp_path_factory.mktemp("server") / "log") as server:
        yield server, bool(request.param)


def ask(server: Server, url: str, path: str = "/v1/chat/completions") -> httpx.Response:
    content = [{"type": "audio_url", "audio_url": {"url": url}}, {"type": "text", "text": "Hi"}]
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}], "max_tokens": 2}
    return httpx.post(f"{server.url}{path}", json=body, timeout=90)


def test_media_come_from_named_sources_only(server: tuple[Server, bool], tmp_path: Path) -> None:
    engine, named = server
    file = tmp_path / "sound.wav"
    file.write_bytes(sound())
    data = base64.b64encode(sound()).decode()
    assert ask(engine, f"data:audio/wav;base64,{data}").status_code == 200
    broken = ask(engine, "data:audio/wav;base64,AAAA")
    assert broken.status_code == 400, broken.text
    assert broken.json()["error"]["param"] == "audio_url"
    source = Source()
    with serve_asgi(source) as url:
        port = url.rpartition(":")[2]
        host = f"http://localhost:{port}"
        answer = ask(engine, f"{host}/sound")
        assert answer.status_code == (200 if named else 400), answer.text
        assert source.paths == (["/sound"] if named else [])
        source.paths.clear()
        wrong = [
            (f"http://127.0.0.1:{port}/sound", KEYS["http"]),
            (f"http://localhost@127.0.0.1:{port}/sound", KEYS["http"]),
            (f"http://localhost.:{port}/sound", KEYS["http"]),
            (f"HTTP://[::1]:{port}/sound", KEYS["http"]),
            (f"file://{file}", KEYS["file"]),
            (f"FILE://{file}", KEYS["file"]),
            (f"ftp://localhost:{port}/sound", "must be a data:"),
            (str(file), "must be a data:"),
            ("http://[", "must be a data:"),
        ]
        for address, message in wrong:
            for path in ("/v1/chat/completions", "/tokenize"):
                refused = ask(engine, address, path)
                assert refused.status_code == 400, (address, refused.text)
                error = refused.json()["error"]
                assert message in error["message"], address
                assert error["param"] == "audio_url"
        assert source.paths == []
        followed = ask(engine, f"{host}/elsewhere")
        assert followed.status_code == 400
        assert source.paths == (["/elsewhere"] if named else [])


def test_recordings_of_a_chat_share_one_limit(server: tuple[Server, bool]) -> None:
    buffer = io.BytesIO()
    soundfile.write(buffer, np.zeros(16000 * 590, "int16"), 16000, "PCM_16", format="FLAC")
    url = f"data:audio/flac;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    parts = [{"type": "audio_url", "audio_url": {"url": url}}] * 60  # 2 GB of samples
    process = psutil.Process(server[0].process.pid)
    used = [process.memory_info().rss]
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(0.05):
            used.append(process.memory_info().rss)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        body = {"model": "tiny", "messages": [{"role": "user", "content": parts}]}
        answer = httpx.post(f"{server[0].url}/v1/chat/completions", json=body, timeout=90)
    finally:
        is_over.set()
        watching.join()
    assert answer.status_code == 400, answer.text
    assert "more than 268435456 bytes of samples together" in answer.json()["error"]["message"]
    assert max(used) - used[0] < 1 << 30
    assert ask(server[0], url_of_sound()).status_code == 200


def url_of_sound() -> str:
    return f"data:audio/wav;base64,{base64.b64encode(sound()).decode()}"


def test_no_process_is_left_of_an_engine_that_is_killed(server: tuple[Server, bool]) -> None:
    """The last test: nothing answers after it."""
    process = server[0].process
    tree = descendants(process.pid)
    compiler = [each for each in tree if "grammar.worker" in " ".join(each.cmdline())]
    engine = [each for each in tree if each not in compiler]
    assert len(engine) >= 2
    process.send_signal(signal.SIGKILL)
    process.wait(5)
    assert not alive(engine, within_s=5)
    # It sees that nobody is left when it has imported what it needs.
    assert not alive(compiler, within_s=60)
