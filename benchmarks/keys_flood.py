"""What thousands of connections of a key do to another one: the part `flood` of `benchmarks.keys`.

The key `busy` sends whole answers on so many connections, and asks again as soon as it is refused
(wrk). The key `steady` asks for one at a time on new connections, waits a tenth of a second after
each answer, and after a refusal as it is told.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpx

BODY = {"prompt": "one two three four", "max_tokens": 8}
ROUTE = "/v1/completions"
MODELS = ("slow", "echo")
WAYS: dict[str, tuple[str, dict[str, str]]] = {
    "direct": (ROUTE, {}),
    "own address": (f"/models/%s{ROUTE}", {}),
    "router": (ROUTE, {"x-truthgpt-way": "router"}),
}
PAUSE_S, WARM_S, LIMIT_S = 0.1, 2.0, 60.0
SCRIPT = """
wrk.method = "POST"
wrk.body = [[%s]]
wrk.headers["content-type"] = "application/json"
%s
"""


@contextmanager
def flooding(
    url: str, body: str, headers: Mapping[str, str], number: int, seconds: float
) -> Iterator[None]:
    """Has so many connections send what they can; none where that is 0."""
    if not number:
        yield
        return
    lines = "\n".join(f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items())
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(SCRIPT % (body, lines))
        script.flush()
        lasts = f"-d{round(seconds + WARM_S)}s"
        command = ["wrk", "-t1", f"-c{number}", lasts, "--timeout", "30s", "-s", script.name, url]
        flood = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            time.sleep(WARM_S)
            yield
            flood.wait(LIMIT_S)
        finally:
            flood.kill()
            flood.wait()


def ask_steadily(url: str, body: str, headers: Mapping[str, str], seconds: float) -> dict[str, Any]:
    """Returns what a patient client saw."""
    took_s: list[float] = []
    told_s: list[int] = []
    end_s = time.monotonic() + seconds
    while (began_s := time.monotonic()) < end_s:
        answer = httpx.post(url, content=body, headers=headers, timeout=LIMIT_S)
        if answer.status_code == 200:
            took_s.append(time.monotonic() - began_s)
            time.sleep(PAUSE_S)
        elif answer.status_code == 429:
            told_s.append(int(answer.headers["retry-after"]))
            time.sleep(told_s[-1])
        else:
            raise SystemExit(f"status {answer.status_code}: {answer.text[:200]}")
    return {
        "answered": len(took_s),
        "refused": len(told_s),
        "told_s_max": max(told_s, default=0),
        "took_ms_p50": round(1000 * statistics.median(took_s)) if took_s else None,
        "took_ms_max": round(1000 * max(took_s)) if took_s else None,
    }


def measure_flood(
    url: str, keys: Mapping[str, str], connections: list[int], seconds: float
) -> dict[str, Any]:
    """Returns what the key `steady` saw, by model, way and connections of the key `busy`."""
    found: dict[str, Any] = {}
    for model in MODELS:
        body = json.dumps({**BODY, "model": model})
        for way, (path, more) in WAYS.items():
            address = url + (path % model if "%s" in path else path)
            for number in (0, *connections):
                json_of = {
                    name: {
                        "content-type": "application/json",
                        "authorization": f"Bearer {keys[name]}",
                        **more,
                    }
                    for name in ("busy", "steady")
                }
                with flooding(address, body, json_of["busy"], number, seconds):
                    seen = ask_steadily(address, body, json_of["steady"], seconds)
                found[f"{model}, {way}, {number}"] = seen
                time.sleep(WARM_S)
    return found
