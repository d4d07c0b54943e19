"""Compressed bodies of requests: what they become, and what they may not cost."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import random
import threading
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import httpx
import pytest
from backports import zstd

from tests.support.sample_models import Upper, spec_of
from tests.support.servers import serve_asgi
from tests.unit.router.test_relay import CancelOnDisconnect, Cluster, Proxy
from truthgpt_serve.config import RouterConfig
from truthgpt_serve.errors import CodingError, OverloadedError, RequestError, TooLargeError
from truthgpt_serve.http.asgi import LEAVING_KEY, Message
from truthgpt_serve.http.compression import (
    CODINGS,
    FREE_BYTES,
    MAX_GROWTH,
    MAX_PARTS,
    PIECE_BYTES,
    CorruptError,
    Decoder,
    Grown,
    content_coding,
    decompress,
    plain_request,
)
from truthgpt_serve.http.connection import Connection
from truthgpt_serve.router.app import RouterApp
from truthgpt_serve.router.bodies import request_body
from truthgpt_serve.server import create_app, encoded_bodies

MIB = 2**20
MAX_BODY_BYTES = 4 * MIB
PACK: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstd.compress,
}
A_MEMBER = gzip.compress(
    b"a", mtime=0
)  # without the time: names of tests are the same in all workers
SIZES = (0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES, 3 * MIB + 7)


def bomb(num_bytes: int) -> bytes:
    """Returns what becomes this many bytes, without ever having had them."""
    packer = zlib.compressobj(9, zlib.DEFLATED, zlib.MAX_WBITS)
    head = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(MIB)) + packer.flush(zlib.Z_FULL_FLUSH)
    return head + block * (num_bytes // MIB)


async def whole(data: bytes, coding: str, max_bytes: int = 2**30) -> bytes:
    with Grown().body() as growth:
        return b"".join(await decompress(data, coding, max_bytes, growth.reach))


# -- one body


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", ["sparse", "noise"])
async def test_a_body_is_what_was_compressed(coding: str, size: int, kind: str) -> None:
    rng = random.Random(size)
    body = rng.randbytes(size)
    if kind == "sparse":  # every tenth byte is noise
        body = b"".join(b"%c---------" % byte for byte in body[: size // 10 + 1])[:size]
    packed = PACK[coding](body)
    assert await whole(packed, coding) == body
    assert await whole(packed, coding, max(1, size)) == body
    if size:
        with pytest.raises(TooLargeError):
            await whole(packed, coding, size - 1)


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("step", [1, 7, 4096])
def test_data_may_come_in_any_pieces(coding: str, step: int) -> None:
    body = json.dumps(list(range(5000))).encode() + bytes(PIECE_BYTES)
    packed = PACK[coding](body)
    decoder = Decoder(coding)
    found = b""
    for start in range(0, len(packed), step):
        assert not decoder.ended
        pieces = list(decoder.pieces(packed[start : start + step]))
        assert all(0 < len(piece) <= PIECE_BYTES for piece in pieces)
        found += b"".join(pieces)
    decoder.finish()
    assert found == body


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("size", [20, 600_000])
async def test_damaged_bodies_are_refused(coding: str, size: int) -> None:
    packed = PACK[coding](random.Random(1).randbytes(size))
    for data, words in (
        (b"", "it is cut off"),
        (packed[:-1], "it is cut off"),
        (packed + b"abc", f"has 3 bytes behind the end of its {coding}"),
        (packed + bytes(PIECE_BYTES), f"has {PIECE_BYTES} bytes behind the end of its {coding}"),
        (b"{" + packed, f"is not valid {coding}"),
        (b"\x28\xb5\x2f\xfd" + b'{"model": "m"}', f"is not valid {coding}"),
    ):
        with pytest.raises(RequestError, match=words) as caught:
            await whole(data, coding)
        assert caught.value.status == 400


SKIPPED = b"\x5a\x2a\x4d\x18\x03\x00\x00\x00abc"
"""A frame of zstd's whose three bytes mean nothing (RFC 8878, 3.1.2)."""


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
@pytest.mark.parametrize("step", [1, 7, 2**30])
async def test_a_body_may_have_several_parts(coding: str, step: int) -> None:
    noise = random.Random(2).randbytes(3 * PIECE_BYTES)
    bodies = [b"", noise, b"abc", bytes(PIECE_BYTES), noise[:100_000], b""]
    packed = [PACK[coding](body) for body in bodies]
    if coding == "zstd":
        packed = [SKIPPED, *packed, SKIPPED]
    data = b"".join(packed)
    assert await whole(data, coding) == b"".join(bodies)
    decoder = Decoder(coding)
    starts = range(0, len(data), step)
    pieces = [piece for at in starts for piece in decoder.pieces(data[at : at + step])]
    decoder.finish()
    assert decoder.ended
    assert b"".join(pieces) == b"".join(bodies)


def byte_by_byte(decoder: Decoder, data: bytes) -> None:
    for at in range(len(data)):
        list(decoder.pieces(data[at : at + 1]))
    decoder.finish()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (A_MEMBER + b"\x1f", "has 1 bytes behind the end of its gzip"),
        (A_MEMBER + b"\x1f\x8a", "has 2 bytes behind the end of its gzip"),
        (A_MEMBER + zstd.compress(b"a"), "bytes behind the end of its gzip"),
        (A_MEMBER + gzip.compress(b"b", mtime=0)[:-1], "it is cut off"),
        (A_MEMBER + b"\x1f\x8b" + bytes(20), "is not valid gzip"),
        (zstd.compress(b"a") + SKIPPED[:3], "has 3 bytes behind the end of its zstd"),
        (zstd.compress(b"a") + SKIPPED[:-1], "it is cut off"),
        (zstd.compress(b"a") + b"\x60" + SKIPPED[1:], "has 11 bytes behind the end of its zstd"),
        (zlib.compress(b"a") * 2, "has 9 bytes behind the end of its deflate"),
    ],
)
async def test_what_is_no_further_part_is_refused(data: bytes, words: str) -> None:
    coding = {b"\x1f": "gzip", b"\x78": "deflate"}.get(data[:1], "zstd")
    with pytest.raises(RequestError, match=words):
        await whole(data, coding)
    words = words.partition("has ")[0] or "behind the end"
    with pytest.raises(CorruptError, match=words):
        byte_by_byte(Decoder(coding), data)


@pytest.mark.parametrize("coding", ["gzip", "zstd"])
async def test_the_parts_of_a_body_are_bounded(coding: str) -> None:
    part, last = PACK[coding](b"a"), PACK[coding](random.Random(1).randbytes(PIECE_BYTES))
    assert len(await whole(part * (MAX_PARTS - 1) + last, coding)) == MAX_PARTS - 1 + PIECE_BYTES
    with pytest.raises(RequestError, match=f"more than {MAX_PARTS} parts of {coding}"):
        await whole(part * (MAX_PARTS + 1), coding)
    large = PACK[coding](bytes(FREE_BYTES // 2 + 1))
    with pytest.raises(TooLargeError, match="without its compression"):
        await whole(large * 2, coding)


def test_flipped_bits_never_do_more_than_raise() -> None:
    body = json.dumps({"model": "m", "x": "a b c " * 500}).encode()
    rng = random.Random(5)
    for coding, pack in PACK.items():
        packed = pack(body)
        for _ in range(300):
            data = bytearray(packed)
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            with contextlib.suppress(RequestError):
                asyncio.run(whole(bytes(data), coding, MIB))


async def test_a_large_window_of_zstd_is_refused() -> None:
    """A few bytes could ask for a window of 2 GB, which is memory before anything comes of it."""
    options = {zstd.CompressionParameter.window_log: 27}
    packer = zstd.ZstdCompressor(options=options)  # type: ignore[arg-type]  # as documented
    packed = packer.compress(b"a" * 100) + packer.flush()
    with pytest.raises(RequestError, match="too much memory"):
        await whole(packed, "zstd")


async def test_a_bomb_costs_neither_memory_nor_the_loops_time() -> None:
    data = bomb(2**30)
    ticks = 0
    done = asyncio.Event()

    async def tick() -> None:
        nonlocal ticks
        while not done.is_set():
            await asyncio.sleep(0.001)
            ticks += 1

    ticker = asyncio.create_task(tick())
    await asyncio.sleep(0)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        with pytest.raises(TooLargeError, match="send it without compression"):
            await whole(data, "deflate", 8 * MIB)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
        done.set()
        await ticker
    assert peak < 24 * MIB
    assert ticks > 0


async def test_growth_is_bounded_beyond_what_is_free() -> None:
    assert len(await whole(gzip.compress(bytes(FREE_BYTES), 1), "gzip")) == FREE_BYTES
    with pytest.raises(TooLargeError, match=f"larger than {FREE_BYTES} bytes without"):
        await whole(gzip.compress(bytes(FREE_BYTES + 1)), "gzip")
    noise = random.Random(3).randbytes(FREE_BYTES)
    for growth in (MAX_GROWTH - 1, MAX_GROWTH + 1):
        packer = zlib.compressobj(9)  # what is not noise takes up almost nothing
        packed = packer.compress(noise + bytes((growth - 1) * len(noise))) + packer.flush()
        if growth > MAX_GROWTH:
            with pytest.raises(TooLargeError, match=f"{len(packed)} bytes may become"):
                await whole(packed, "deflate")
        else:
            assert len(await whole(packed, "deflate")) == growth * len(noise)


async def test_all_bodies_together_are_bounded() -> None:
    grown = Grown(MIB)
    packed = gzip.compress(bytes(MIB))
    with grown.body() as growth:
        await decompress(packed, "gzip", 2**30, growth.reach)
        with grown.body() as second:
            with pytest.raises(OverloadedError, match="without compression"):
                await decompress(packed, "gzip", 2**30, second.reach)
            small = b"x" * PIECE_BYTES
            pieces = await decompress(gzip.compress(small), "gzip", 2**30, second.reach)
            assert b"".join(pieces) == small
        growth.release()
        with grown.body() as second:
            assert len(await decompress(packed, "gzip", 2**30, second.reach)) == 4
    with pytest.raises(OverloadedError):
        growth.reach(1)  # a thread whose request has ended goes on no further
    with grown.body() as growth:
        growth.reach(MIB)


async def test_only_what_a_body_grows_by_is_counted() -> None:
    noise = random.Random(3).randbytes(3 * MIB)
    packed = gzip.compress(noise + bytes(MIB - len(noise) // 1000))
    with Grown(MIB).body() as growth:
        assert len(await decompress(packed, "gzip", 2**30, growth.reach)) > 12


async def test_a_body_that_is_alone_too_much_need_not_be_tried_again() -> None:
    packed = gzip.compress(bytes(MIB))
    with (
        Grown(MIB // 2).body() as growth,
        pytest.raises(TooLargeError, match="over 524288 bytes longer"),
    ):
        await decompress(packed, "gzip", 2**30, growth.reach)


async def test_large_bodies_leave_the_loop() -> None:
    threads = []

    def reach(num_bytes: int) -> None:
        threads.append(threading.current_thread().name)

    noise = random.Random(1).randbytes(3 * MIB)
    for data in (noise, bytes(FREE_BYTES - 1)):  # many bytes, or what becomes many
        for first in (b"", gzip.compress(b"a")):
            threads.clear()
            await decompress(first + gzip.compress(data), "gzip", 2**30, reach)
            assert all(name.startswith("decompress") for name in threads[1:])
            assert len(threads) > 2


@pytest.mark.parametrize("value", [None, b"", b" ", b"identity", b"Identity"])
def test_no_coding(value: bytes | None) -> None:
    assert content_coding(value) == ""


@pytest.mark.parametrize(
    ("value", "coding"), [(b" GZip ", "gzip"), (b"x-gzip", "gzip"), (b"ZSTD", "zstd")]
)
def test_codings(value: bytes, coding: str) -> None:
    assert content_coding(value) == coding


@pytest.mark.parametrize("value", [b"br", b"gzip, gzip", b"gzip,", b"x" * 1000, b"\xff"])
def test_other_codings_are_refused_with_those_that_are_not(value: bytes) -> None:
    with pytest.raises(CodingError, match="one of gzip, deflate, zstd, or without") as caught:
        content_coding(value)
    assert len(str(caught.value)) < 200


# -- over HTTP


@pytest.fixture(scope="module")
def proxy() -> Proxy:
    return Proxy()


@pytest.fixture(scope="module")
def router(proxy: Proxy) -> Iterator[str]:
    config = RouterConfig(max_body_bytes=MAX_BODY_BYTES, request_timeout_s=4)
    with serve_asgi(proxy) as upstream:
        app = RouterApp(config, Cluster().fetch, ("127.0.0.1", httpx.URL(upstream).port or 0))
        with serve_asgi(CancelOnDisconnect(app), lifespan="on") as url:
            yield url


@pytest.fixture(scope="module")
def model() -> Iterator[str]:
    app = create_app(spec_of(Upper), {"task": "custom"}, name="m", max_body_bytes=MAX_BODY_BYTES)
    with serve_asgi(app, lifespan="on") as url:
        yield url


def post(url: str, content: Any, coding: str, **headers: str) -> httpx.Response:
    return httpx.post(url, content=content, headers={"content-encoding": coding, **headers})


@pytest.mark.parametrize("coding", CODINGS)
@pytest.mark.parametrize("size", [10, 3 * MIB])
def test_a_model_gets_what_the_client_meant(
    router: str, proxy: Proxy, coding: str, size: int
) -> None:
    words = random.Random(size).randbytes(size // 2).hex()
    body = json.dumps({"x": words, "model": "m"}).encode()
    answer = post(f"{router}/v1/plain", PACK[coding](body), coding)
    assert answer.status_code == 200
    seen = proxy.requests[-1]
    assert seen["body"] == body
    assert seen["headers"][b"content-length"] == b"%d" % len(body)
    assert not {b"content-encoding", b"transfer-encoding"} & set(seen["headers"])


def test_a_compressed_form_in_chunks(router: str, proxy: Proxy) -> None:
    form = (
        b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nabc\r\n'
        b'--b\r\ncontent-disposition: form-data; name="model"\r\n\r\nm\r\n--b--\r\n'
    )
    packed = gzip.compress(form)

    def pieces() -> Iterator[bytes]:
        for at in range(0, len(packed), 5):
            yield packed[at : at + 5]

    kind = {"content-type": "multipart/form-data; boundary=b"}
    answer = post(f"{router}/v1/plain", pieces(), "gzip", **kind)
    assert answer.status_code == 200
    assert proxy.requests[-1]["body"] == form


@pytest.mark.parametrize("coding", CODINGS)
def test_the_models_own_address_takes_them_too(model: str, coding: str) -> None:
    body = json.dumps({"model": "m", "inputs": {"text": "abc"}}).encode()
    answer = post(f"{model}/v1/infer", PACK[coding](body), coding)
    assert answer.status_code == 200
    assert answer.json()["outputs"]["text"].startswith("ABC")


@pytest.mark.parametrize("place", ["router", "model"])
def test_what_is_refused(place: str, router: str, model: str, proxy: Proxy) -> None:
    url = f"{router if place == 'router' else model}/v1/infer"
    before = len(proxy.requests)
    body = json.dumps({"model": "m", "inputs": {}}).encode()
    other = post(url, body, "br")
    assert other.status_code == 415
    assert other.headers["accept-encoding"] == "gzip, deflate, zstd"
    assert other.json()["error"]["code"] == "unsupported_content_encoding"
    plain = post(url, body, "gzip")
    assert plain.status_code == 400
    assert "is not valid gzip" in plain.json()["error"]["message"]
    for content, limit in ((bomb(32 * MIB), FREE_BYTES), (bomb(512 * MIB), MAX_BODY_BYTES)):
        large = post(url, content, "deflate")
        assert large.status_code == 413
        assert f"larger than {limit} bytes without" in large.json()["error"]["message"]
    packed = post(url, random.Random(1).randbytes(MAX_BODY_BYTES + 1), "gzip")
    assert packed.status_code == 413
    assert len(proxy.requests) == before


def test_errors_have_the_form_of_their_api(router: str) -> None:
    answer = post(f"{router}/v1/messages", b"{}", "br")
    assert (answer.status_code, answer.json()["type"]) == (415, "error")


@pytest.mark.long("waits for limits of time")
async def test_a_client_that_leaves_or_stops(router: str, proxy: Proxy) -> None:
    before = len(proxy.requests)
    part = (
        b"POST /v1/plain HTTP/1.1\r\nhost: x\r\ncontent-encoding: gzip\r\n"
        b"content-length: 100\r\n\r\nabc"
    )
    for leaves in (True, False):
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(router).port)
        writer.write(part)
        await writer.drain()
        if not leaves:
            async with asyncio.timeout(30):
                assert b" 408 " in await reader.readuntil(b"\r\n\r\n")
        writer.close()
        await writer.wait_closed()
    assert len(proxy.requests) == before


GROWING = gzip.compress(json.dumps({"model": "m", "x": "a" * (900 * 1024)}).encode())


def test_a_body_that_was_sent_on_counts_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(request_body, "Grown", partial(Grown, MIB))
    with serve_asgi(Proxy()) as upstream:
        address = ("127.0.0.1", httpx.URL(upstream).port or 0)
        app = RouterApp(RouterConfig(request_timeout_s=60), Cluster().fetch, address)
        with (
            serve_asgi(CancelOnDisconnect(app), lifespan="on") as url,
            httpx.Client(base_url=url, headers={"content-encoding": "gzip"}) as client,
            client.stream("POST", "/v1/endless", content=GROWING, timeout=30) as answer,
        ):
            assert answer.status_code == 200
            next(answer.iter_raw())
            assert client.post("/v1/plain", content=GROWING, timeout=30).status_code == 200


async def test_a_body_that_was_parsed_counts_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoded_bodies, "Grown", partial(Grown, MIB))
    parsed = asyncio.Event()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        while (await receive())["more_body"]:
            pass
        asyncio.get_running_loop().call_later(0.05, parsed.set)
        await receive()

    app = encoded_bodies.EncodedBodies(application, max_body_bytes=2 * MIB, max_request_s=9)
    scope = {"type": "http", "path": "/", "headers": [(b"content-encoding", b"gzip")]}
    sent: list[Message] = []

    async def call() -> None:
        messages = [{"type": "http.request", "body": GROWING}]

        async def receive() -> Message:
            return messages.pop() if messages else await asyncio.Future()

        async def send(message: Message) -> None:
            sent.append(message)

        await app(scope, receive, send)

    for _ in range(3):
        task = asyncio.create_task(call())
        async with asyncio.timeout(30):
            await parsed.wait()
        parsed.clear()
        assert not task.done()
    assert not sent
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()


async def test_work_on_a_body_frees_what_it_has_grown_by() -> None:
    """Also where leaving is told in another way than by `receive`."""
    released = []
    scope = {"type": "http", "path": "/", "headers": [], LEAVING_KEY: set()}

    async def left() -> Message:
        await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        raise AssertionError(message)

    plain, receive = plain_request(scope, left, [b"x" * 10], lambda: released.append(1))
    connection = Connection(plain, receive, send)
    assert await connection.read(100) == b"x" * 10
    async with connection.guard(10):
        assert not released
        for _ in range(3):
            await asyncio.sleep(0)
        assert released
