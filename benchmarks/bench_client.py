"""How many streamed chunks one process of `truthgpt bench` takes in, and what they cost it.

A server in a process of its own streams chunks at a given rate to each connection; what the client
reports is compared with what was sent.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import repeat
from multiprocessing.connection import Connection
from typing import Any

from truthgpt_serve.bench.load import Load
from truthgpt_serve.bench.outcome import Request
from truthgpt_serve.bench.result import extras
from truthgpt_serve.bench.session import Plan, Session
from truthgpt_serve.bench.target import Target

_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(choices: list[Any], **fields: Any) -> bytes:
    body = {"id": "chatcmpl-0", "object": "chat.completion.chunk", "created": 0, "model": "stream"}
    return _chunk(b"data: " + json.dumps(body | {"choices": choices} | fields).encode() + b"\n\n")


def _delta(text: str, reason: str | None = None) -> list[dict[str, Any]]:
    return [{"index": 0, "delta": {"content": text}, "logprobs": None, "finish_reason": reason}]


async def _answer(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    num_chunks: int,
    interval_s: float,
    first_s: float,
) -> None:
    """Answers the requests of one connection: each with chunks at equal distances."""
    loop = asyncio.get_running_loop()
    chunk, last = _event(_delta("word ")), _event(_delta("", "length"))
    usage = {"prompt_tokens": 1, "completion_tokens": num_chunks}
    tail = last + _event([], usage=usage) + _chunk(b"data: [DONE]\n\n") + _chunk(b"")
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            lengths = [
                int(line.split(b":")[1])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length:")
            ]
            if not lengths:  # no request to answer, such as vLLM's for metrics
                writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
                continue
            await reader.readexactly(lengths[0])
            writer.write(_HEAD)
            start_s = loop.time() + first_s
            for at in range(num_chunks):
                if interval_s or first_s:
                    await asyncio.sleep(max(0.0, start_s + at * interval_s - loop.time()))
                writer.write(chunk)
                await writer.drain()
            writer.write(tail)
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def _serve(pipe: Connection, num_chunks: int, interval_s: float, first_s: float) -> None:
    server = await asyncio.start_server(
        lambda reader, writer: _answer(reader, writer, num_chunks, interval_s, first_s),
        "127.0.0.1",
        0,
    )
    async with server:
        pipe.send(server.sockets[0].getsockname()[1])
        await asyncio.to_thread(pipe.recv)


def serve(pipe: Connection, num_chunks: int, interval_s: float, first_s: float) -> None:
    """Serves until something comes over the pipe."""
    asyncio.run(_serve(pipe, num_chunks, interval_s, first_s))


@contextmanager
def paced_server(num_chunks: int, interval_s: float, first_s: float = 0.0) -> Iterator[str]:
    """Runs a server in a process of its own; yields its address.

    Args:
        num_chunks: Chunks of each answer.
        interval_s: The time between two.
        first_s: The time before the first.
    """
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=serve, args=(there, num_chunks, interval_s, first_s))
    process.start()
    try:
        if not here.poll(60):
            sys.exit("the server did not start")
        yield f"http://127.0.0.1:{here.recv()}"
    finally:
        here.send(None)
        process.join(10)
        process.kill()


async def measure(url: str, num_clients: int, duration_s: float) -> dict[str, Any]:
    """Returns the result of one closed-loop measurement."""
    plan = Plan(
        endpoint="chat",
        loads=[Load(concurrency=num_clients, duration_s=duration_s)],
        make_requests=lambda lengths_seed, text_seed: repeat(Request("word", 1, 128)),
        warmup=num_clients,
        timeout_s=60,
    )
    results = await Session(plan, [Target(url, "stream")], asyncio.Event()).run()
    return results[0]


def main() -> None:
    """Measures at each rate and prints one line for each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rates", default="500,1000,2000,4000", help="chunks/s over all clients")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--chunks", type=int, default=128, help="chunks of one answer")
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    for rate in [float(item) for item in options.rates.split(",")]:
        interval_s = options.clients / rate
        with paced_server(options.chunks, interval_s) as url:
            result = asyncio.run(measure(url, options.clients, options.seconds))
        extra = extras(result)
        line = {
            "chunks_per_s_asked": rate,
            "chunks_per_s": round(extra["num_chunks"] / result["duration"], 1),
            "client_cpu_share": extra["client_cpu_share"],
            "itl_ms_sent": interval_s * 1000,
            "mean_itl_ms": round(result["mean_itl_ms"], 3),
            "median_itl_ms": round(result["median_itl_ms"], 3),
            "failed": result["failed"],
        }
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
