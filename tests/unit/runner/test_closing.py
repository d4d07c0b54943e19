"""Programs that do not close their models end all the same, and close them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
import asyncio, threading, time
from concurrent.futures import ThreadPoolExecutor
from truthgpt_serve import build_async_model, build_model, register_model

@register_model("blocking")
class Blocking:
    def load(self, cfg):
        self.pool = ThreadPoolExecutor(1)
        self.ended = threading.Event()
        self.work = self.pool.submit(self.ended.wait)  # as an engine that waits for requests

    def infer(self, inputs):
        return inputs

    def close(self):
        self.ended.set()
        self.work.result(10)
        ThreadPoolExecutor(1).submit(print, "closed", flush=True).result(10)

@register_model("awaited")
class Awaited:
    async def load(self, cfg):
        self.task = asyncio.create_task(asyncio.sleep(600))

    async def infer(self, inputs):
        return inputs

    async def stream(self, inputs):
        try:
            while True:
                yield inputs
        finally:
            print("stream closed", flush=True)

    async def close(self):
        self.task.cancel()
        await asyncio.to_thread(print, "closed", flush=True)
"""


def run(tmp_path: Path, lines: str) -> list[str]:
    program = tmp_path / "program.py"
    program.write_text(MODULE + lines)
    done = subprocess.run(
        [sys.executable, program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


@pytest.mark.parametrize("family", ["blocking", "awaited"])
def test_a_program_without_close_ends(tmp_path: Path, family: str) -> None:
    lines = f"model = build_model({family!r})\nprint(model.infer(1))\n"
    assert run(tmp_path, lines) == ["1", "closed"]


def test_a_stream_that_is_left_at_the_end(tmp_path: Path) -> None:
    lines = 'stream = build_model("awaited").stream(1)\nprint(next(stream))\n'
    assert run(tmp_path, lines) == ["1", "stream closed", "closed"]


@pytest.mark.parametrize("family", ["blocking", "awaited"])
def test_an_async_program_without_close_ends(tmp_path: Path, family: str) -> None:
    lines = f"""
async def main():
    global model
    model = await build_async_model({family!r})
    print(await model.infer(1))

asyncio.run(main())
"""
    assert run(tmp_path, lines) == ["1", "closed"]


def test_a_child_of_the_program_leaves_the_model_alone(tmp_path: Path) -> None:
    lines = """
import multiprocessing

model = build_model("awaited")
child = multiprocessing.get_context("fork").Process(target=print, args=("child",))
child.start()
child.join(10)
print(child.exitcode, model.infer(1))
"""
    assert run(tmp_path, lines) == ["child", "0 1", "closed"]
