"""Measures `truthgpt chat`'s first text against curl's: `python -m benchmarks.chat_first_token`.

Starts a service with the echo model, asks the same question in turns and prints medians. The chat
is one conversation on a terminal, timed from Enter to the first letter of the answer on the
screen; curl is a new process each time, timed from its start to the first event with text.
"""

from __future__ import annotations

import argparse
import json
import os
import pty
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.local_cluster import LocalCluster, model_application, router_application
from benchmarks.sides import ROOT

START_TIMEOUT_S = 300.0
READ_TIMEOUT_S = 60.0
MARK = "zebra"
PROMPT = b"> "


class Terminal:
    """A `truthgpt chat` in a pseudo-terminal.

    Args:
        url: Address of the service.
    """

    def __init__(self, url: str) -> None:
        self._fd, child = pty.openpty()
        command = [str(Path(sys.executable).with_name("truthgpt")), "chat", "echo"]
        env = {**os.environ, "TRUTHGPT_URL": url, "TERM": "dumb"}
        self._process = subprocess.Popen(
            command, stdin=child, stdout=child, stderr=child, env=env, cwd=ROOT
        )
        os.close(child)
        self._read = b""
        self._read_until(PROMPT)

    def ask(self, word: str) -> float:
        """Returns the seconds from Enter to the first text of the answer."""
        os.write(self._fd, word.encode())
        self._read_until(word.encode())  # the terminal shows what is typed
        started_s = time.perf_counter()
        os.write(self._fd, b"\n")
        self._read_until(b"\n")  # the line that was typed ends
        self._read_until(word[:1].encode())
        taken_s = time.perf_counter() - started_s
        self._read_until(PROMPT)
        return taken_s

    def close(self) -> None:
        """Ends the conversation."""
        self._process.kill()
        self._process.wait(READ_TIMEOUT_S)
        os.close(self._fd)

    def _read_until(self, text: bytes) -> None:
        while text not in self._read:
            if not select.select([self._fd], [], [], READ_TIMEOUT_S)[0]:
                raise TimeoutError(f"{text!r} never came, but {self._read!r}")
            self._read += os.read(self._fd, 4096)
        self._read = self._read.partition(text)[2]


def ask_by_curl(url: str, word: str) -> float:
    """Returns the seconds from the start of curl to the first event with text."""
    messages = [{"role": "user", "content": word}]
    body = json.dumps({"model": "echo", "stream": True, "messages": messages})
    header = "content-type: application/json"
    command = ["curl", "-sN", "-m", "60", "-H", header, "-d", body, f"{url}/v1/chat/completions"]
    started_s = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if word in line.decode():
                taken_s = time.perf_counter() - started_s
                process.stdout.read()
                return taken_s
    raise RuntimeError("curl got no text: see what the service answers to the same request")


@contextmanager
def serve_echo() -> Iterator[str]:
    """Runs a service with the echo model; gives its address."""
    with LocalCluster(ROOT / "configs" / "ray.env") as cluster:
        echo = model_application("echo", {"model": {"family": "echo"}, "hardware": {"gpus": 0}})
        cluster.deploy([echo, router_application(cluster.port)])
        cluster.wait_until_ready(timeout_s=START_TIMEOUT_S)
        yield cluster.url


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", type=int, default=30)
    options = parser.parse_args()
    with serve_echo() as url:
        terminal = Terminal(url)
        try:
            terminal.ask(MARK)
            ask_by_curl(url, MARK)
            pairs = [(terminal.ask(MARK), ask_by_curl(url, MARK)) for _ in range(options.pairs)]
        finally:
            terminal.close()
    chat, curl = (statistics.median(values) * 1000 for values in zip(*pairs, strict=True))
    difference = statistics.median(one - other for one, other in pairs) * 1000
    print(f"first text: chat {chat:.1f} ms, curl {curl:.1f} ms, difference {difference:+.1f} ms")


if __name__ == "__main__":
    main()
