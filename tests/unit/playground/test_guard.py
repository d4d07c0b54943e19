"""What browsers and others may ask of the playground; its answers load nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.playground_service import Pages, serve_pages

if importlib.util.find_spec("gradio") is None:
    pytest.skip("the extra `ui` is not installed", allow_module_level=True)
KEY = "sk-secret-1"
MOST_UPLOAD = 256 * 1024


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("uploads")


@pytest.fixture(scope="module")
def pages(files: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pages]:
    output = tmp_path_factory.mktemp("playground") / "output.log"
    with serve_pages(files, output, max_upload_bytes=MOST_UPLOAD) as pages:
        yield pages


@pytest.fixture(scope="module")
def http(pages: Pages) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=pages.url, timeout=30) as client:
        yield client


@pytest.mark.long("runs a browser")
def test_the_page_names_no_other_host(http: httpx.Client) -> None:
    page = http.get("/ui/")
    assert page.status_code == 200
    assert page.headers["cache-control"] == "no-store"
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "connect-src 'self'" in policy
    assert "http" not in policy
    loads = re.findall(
        r"<(?:script|link|img|meta)[^>]*(?:src|href|content)=\"([^\"]*)\"", page.text
    )
    assert [one for one in loads if "//" in one and not one.startswith("data:")] == []
    head = http.head("/ui/")
    assert (head.status_code, head.text) == (200, "")


def test_without_a_slash_it_leads_to_the_page(http: httpx.Client) -> None:
    answer = http.get("/ui?__theme=dark")
    assert (answer.status_code, answer.headers["location"]) == (307, "ui/?__theme=dark")
    assert str(answer.next_request.url if answer.next_request else "").endswith("/ui/?__theme=dark")


@pytest.mark.parametrize(
    "path",
    [
        "gradio_api/proxy=https://x.hf.space/",
        "gradio_api/info",
        "gradio_api/call/chat",
        "gradio_api/vibe-code/",
        "gradio_api/runs",
        "gradio_api/dev/reload",
        "monitoring",
        "monitoring/summary",
        "svelte/x",
        "login_check",
        "docs",
        "openapi.json",
        "assets/%2e%2e/%2e%2e/index.html",
        "static//etc/passwd",
        "%2e%2e/v1/models",
        "gradio_api/file=../../etc/passwd",
    ],
)
def test_other_routes_do_not_exist(http: httpx.Client, path: str) -> None:
    answer = http.get(f"/ui/{path}")
    assert answer.status_code in (403, 404), answer.text
    assert answer.headers["content-type"].startswith("application/json")


@pytest.mark.parametrize(
    "path", ["/etc/passwd", f"{Path(__file__)}", "http://127.0.0.1:9/x", "https://example.com/x"]
)
def test_no_file_but_an_upload_is_sent_or_fetched(http: httpx.Client, path: str) -> None:
    answer = http.get(f"/ui/gradio_api/file={path}")
    assert answer.status_code in (403, 404)
    assert "root:" not in answer.text


def handlers(http: httpx.Client) -> dict[int, int]:
    """Returns the number of inputs of each of the page's handlers."""
    config = http.get("/ui/config").json()
    return {one["id"]: len(one["inputs"]) for one in config["dependencies"]}


def join(
    http: httpx.Client,
    data: list[Any],
    *,
    handler: int | None = None,
    session: str = "abc",
    **headers: str,
) -> httpx.Response:
    if handler is None:  # the page of speech, the first that takes as many
        handler = next(at for at, number in handlers(http).items() if number == 5)
        data = [*data, *[None] * 5][:5]
    body = {"data": data, "fn_index": handler, "session_hash": session, "event_data": None}
    return http.post("/ui/gradio_api/queue/join", json=body, headers=headers)


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "https://example.com/a.wav", "http://127.0.0.1:8000/v1/models", 3, None]
)
def test_a_request_names_no_other_file(http: httpx.Client, path: Any) -> None:
    answer = join(http, [{"path": path, "meta": {"_type": "gradio.FileData"}}])
    assert answer.status_code == 400
    assert "a file that was not uploaded" in answer.json()["error"]["message"]


def test_another_sites_page_cannot_use_it(http: httpx.Client) -> None:
    answer = join(http, [], origin="https://evil.example")
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "origin_not_allowed"
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    page = http.get("/ui/config", headers={"origin": "https://evil.example"})
    assert not [name for name in page.headers if name.startswith("access-control-")]
    preflight = http.options(
        "/ui/gradio_api/queue/join", headers={"origin": "https://evil.example"}
    )
    assert preflight.status_code == 405


def test_bodies_are_bounded(http: httpx.Client, files: Path) -> None:
    large = http.post("/ui/gradio_api/queue/join", content=b"[" + b"1," * 2_000_000 + b"1]")
    assert large.status_code == 413

    def pieces() -> Iterator[bytes]:  # without a content-length
        for _ in range(40):
            yield b"1" * 65536

    assert http.post("/ui/gradio_api/queue/join", content=pieces()).status_code == 413
    deep = http.post("/ui/gradio_api/queue/join", content=b"[" * 1_000_000)
    assert deep.status_code == 400
    many = {"files": ("a.wav", b"0" * (MOST_UPLOAD + 100_000))}
    assert http.post("/ui/gradio_api/upload", files=many).status_code == 413
    over = {"files": ("a.wav", b"0" * (MOST_UPLOAD + 1))}
    assert http.post("/ui/gradio_api/upload", files=over).status_code == 413
    assert files_below(files) == []


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


PART = b'--x\r\ncontent-disposition: form-data; name="%s"; filename="a.wav"\r\n\r\n'
FORM = {"content-type": "multipart/form-data; boundary=x"}


def test_nothing_stays_of_an_upload_that_breaks_off(pages: Pages, files: Path) -> None:
    address = urlsplit(pages.url)
    head = "POST /ui/gradio_api/upload HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n"
    head += f"content-type: {FORM['content-type']}\r\n\r\n"
    for _ in range(9):  # one more than may arrive at the same time
        with socket.create_connection((address.hostname, address.port or 0), 10) as connection:
            connection.sendall(head.encode() + PART % b"files" + b"0" * 50_000)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(65536)  # until the server has noticed
    assert files_below(files) == []


@pytest.mark.parametrize(
    "body",
    [
        PART % b"other" + b"0" * 50_000 + b"\r\n--x--\r\n",
        PART % b"files" + b"0" * 50_000,
        PART % b"files" + b"0\r\n" + PART % b"files" + b"0\r\n--x--\r\n",
        b'--x\r\ncontent-disposition: form-data; name="files"\r\n\r\n0\r\n--x--\r\n',
        b"",
        b"0" * 50_000,
    ],
)
def test_nothing_stays_of_a_form_without_one_file(
    http: httpx.Client, files: Path, body: bytes
) -> None:
    answer = http.post("/ui/gradio_api/upload", content=body, headers=FORM)
    assert answer.status_code == 400, answer.text
    assert files_below(files) == []


def test_uploads_are_bounded_in_number(http: httpx.Client, pages: Pages) -> None:
    def slow() -> Iterator[bytes]:
        yield PART % b"files"
        over.wait(60)
        yield b"0\r\n--x--\r\n"

    def send(name: str) -> int:
        with httpx.Client(base_url=pages.url, timeout=60) as one:
            path = f"/ui/gradio_api/upload?upload_id={name}"
            return one.post(path, content=slow(), headers=FORM).status_code

    over, names = threading.Event(), [f"slow-{at}" for at in range(8)]
    with ThreadPoolExecutor(16) as pool:
        sent = [pool.submit(send, name) for name in names]
        try:
            list(pool.map(partial(wait_for_arrival, http), names))
            answer = upload(http, b"1")
            assert answer.status_code == 429
            assert answer.headers["retry-after"]
        finally:
            over.set()
        assert [one.result(60) for one in sent] == [200] * 8


def wait_for_arrival(http: httpx.Client, name: str) -> None:
    """Waits until an upload is on its way: what tells of its end does not answer then."""
    path, deadline = f"/ui/gradio_api/upload_progress?upload_id={name}", time.monotonic() + 30
    with suppress(httpx.ReadTimeout):
        while http.get(path, timeout=1).text == 'data: {"msg": "done"}\n\n':
            assert time.monotonic() < deadline


def upload(http: httpx.Client, data: bytes) -> httpx.Response:
    return http.post("/ui/gradio_api/upload", files={"files": ("a.wav", data)})


def test_what_gradio_would_keep_is_bounded(http: httpx.Client) -> None:
    for name in ("x" * 65, "", "a b", 3, ["a"]):
        body = {"data": [], "fn_index": 0, "session_hash": name}
        answer = http.post("/ui/gradio_api/queue/join", json=body)
        assert answer.status_code == 400
        assert "session_hash" in answer.text
    wide: list[Any] = ["x" * 600_000, [[]] * 100_000, {"a": ["y" * 250_000] * 2}]
    for value in wide:
        assert join(http, [None, value]).status_code == 413


def test_a_page_that_reads_nothing_may_ask_for_no_more(http: httpx.Client) -> None:
    chat = next(at for at, number in handlers(http).items() if number == 9)
    data = ["hi", None, "", "echo", *[""] * 5]
    deadline = time.monotonic() + 60
    numbers = {"ok": 0}
    while True:
        answer = join(http, data, handler=chat, session="deaf")
        if answer.status_code == 429:
            break
        numbers["ok"] += answer.status_code == 200  # else its queue is full for the moment
        assert numbers["ok"] <= 64
        assert time.monotonic() < deadline
    assert join(http, data, handler=chat, session="other").status_code in (200, 503)
    read_events(http, "deaf")
    read_events(http, "other")


def test_an_upload_may_be_named(http: httpx.Client, files: Path) -> None:
    (path,) = http.post("/ui/gradio_api/upload", files={"files": ("a.wav", b"RIFF")}).json()
    assert Path(path).is_relative_to(files)
    answer = join(http, [{"path": path, "meta": {"_type": "gradio.FileData"}}])
    assert answer.status_code == 200, answer.text


def test_a_recording_is_transcribed(http: httpx.Client) -> None:
    (path,) = http.post("/ui/gradio_api/upload", files={"files": ("a.wav", b"RIFF")}).json()
    recording = {"path": path, "orig_name": "a.wav", "meta": {"_type": "gradio.FileData"}}
    assert join(http, [recording, None, "listener", "en", ""]).status_code == 200
    said = read_events(http, "abc")
    assert "4 bytes in en &lt;b&gt;" in said
    assert "curl -sS" in said


def test_uploads_fit_on_the_disk(http: httpx.Client, files: Path) -> None:
    sparse = files / "recordings-of-others"
    with sparse.open("wb") as file:
        file.truncate(21 * MOST_UPLOAD)
    try:
        answer = http.post("/ui/gradio_api/upload", files={"files": ("a.wav", b"RIFF")})
        assert (answer.status_code, answer.headers["retry-after"]) == (429, "1")
    finally:
        sparse.unlink()


def test_a_key_is_never_printed(http: httpx.Client, pages: Pages) -> None:
    chat = next(at for at, number in handlers(http).items() if number == 9)
    wrong: list[Any] = [[KEY], [KEY] * 20, {"key": KEY}]
    for data in wrong:
        answer = join(http, data, handler=chat)
        assert answer.status_code == 400
        assert KEY not in answer.text
    odds: list[Any] = [["a"], {"a": 1}, 3, "\n", None]
    for odd in odds:  # whatever Gradio makes of it
        assert join(http, ["hi", None, KEY, *[odd] * 6], handler=chat).status_code == 200
    said = read_events(http, "abc")
    assert said.count("process_completed") >= 5
    assert KEY not in said
    asked = ["hi there", None, KEY, "echo", "", "", "3", "", ""]
    assert join(http, asked, handler=chat).status_code == 200
    said = read_events(http, "abc")
    assert "hi there hi" in said, pages.output.read_text()[-3000:]
    assert KEY not in said
    assert "TRUTHGPT_API_KEY" in said
    assert KEY not in pages.output.read_text(errors="replace")


def read_events(http: httpx.Client, session: str) -> str:
    """Returns what the page is told until nothing of it runs any more."""
    path = "/ui/gradio_api/queue/data"
    return http.get(path, params={"session_hash": session}, timeout=30).text


def test_files_that_never_change_are_kept_by_browsers(http: httpx.Client) -> None:
    page = http.get("/ui/").text
    script = re.search(r'src="\./(assets/[^"]+\.js)"', page)
    assert script is not None
    kept = http.get(f"/ui/{script[1]}").headers["cache-control"]
    assert kept == "public, max-age=31536000, immutable"
    assert "immutable" not in http.get("/ui/theme.css").headers.get("cache-control", "")


def test_the_configuration_tells_nothing(http: httpx.Client) -> None:
    config = http.get("/ui/config").json()
    assert config["analytics_enabled"] is False
    text = json.dumps(config)
    assert str(Path(__file__).resolve().parents[3]) not in text


# At the end: the folder is full then.
def test_uploads_are_bounded_in_sum(http: httpx.Client, files: Path) -> None:
    answers = [upload(http, bytes([at]) * MOST_UPLOAD).status_code for at in range(20)]
    assert answers[0] == 200
    assert answers[-1] == 429
    assert sum(path.stat().st_size for path in files_below(files)) <= 16 * MOST_UPLOAD
