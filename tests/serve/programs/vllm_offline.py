"""Uses the vLLM family without a server: `vllm_offline.py CONFIG INPUTS FAILING`, each in JSON.

One engine after the other: synchronous, asynchronous, those of FAILING, which is a list of
configurations, and one synchronous inside a running event loop that is never closed. Prints one
JSON object with what `infer` and `stream` gave, the errors of those that failed, and which
processes of an engine were left after it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from contextlib import aclosing, suppress
from typing import Any

import psutil

from truthgpt_serve import build_async_model, build_model

LONG = {"max_new_tokens": 500}
END_S = 10.0
"""Within this the processes of an engine have ended."""


def use(config: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    with build_model("vllm", config) as model:
        answer = model.infer(inputs)
        deltas = list(model.stream(inputs))
        model.check_health()
        stream = model.stream({**inputs, **LONG})
        next(stream)
        at_work = unfinished(model)
        stream.close()
        left = unfinished(model)
        error = ""
        try:
            model.infer({"text": 7})
        except Exception as raised:
            error = type(raised).__name__
        model.close()
    return {"answer": answer, "deltas": deltas, "unfinished": [at_work, left], "error": error}


async def use_async(config: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    async with await build_async_model("vllm", config) as model:
        answer = await model.infer(inputs)
        deltas = [item async for item in model.stream(inputs)]
        model.check_health()
        async with aclosing(model.stream({**inputs, **LONG})) as stream:
            await anext(stream)
            at_work = unfinished(model)
        left = unfinished(model)
        error = ""
        try:
            await model.infer({"text": 7})
        except Exception as raised:
            error = type(raised).__name__
        await model.close()
    return {"answer": answer, "deltas": deltas, "unfinished": [at_work, left], "error": error}


async def use_and_leave(config: dict[str, Any], inputs: dict[str, Any]) -> dict[str, Any]:
    global kept
    kept = build_model("vllm", config)
    answer, deltas = kept.infer(inputs), list(kept.stream(inputs))
    stream = kept.stream({**inputs, **LONG})
    next(stream)
    return {"answer": answer, "deltas": deltas}


kept: Any = None


def unfinished(model: Any) -> int:
    """Returns how many requests the engine works on."""
    number: int = model.instance._engine._client.output_processor.get_num_unfinished_requests()
    return number


def fail(config: dict[str, Any]) -> dict[str, Any]:
    try:
        build_model("vllm", config).close()
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"error": ""}


def engine_processes() -> list[str]:
    """Returns the command lines of an engine's processes, once they have had time to end."""
    deadline = time.monotonic() + END_S
    while True:
        found = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                found.append(" ".join(process.cmdline()))
        found = [text for text in found if "EngineCore" in text or "multiprocessing-fork" in text]
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def main() -> None:
    config, inputs, failing = map(json.loads, sys.argv[1:])
    result: dict[str, Any] = {"sync": use(config, inputs)}
    result["sync"]["processes"] = engine_processes()
    result["async"] = asyncio.run(use_async(config, inputs))
    result["async"]["processes"] = engine_processes()
    result["failed"] = [{**fail(each), "processes": engine_processes()} for each in failing]
    result["left"] = asyncio.run(use_and_leave(config, inputs))
    print(json.dumps(result))


if __name__ == "__main__":
    main()
