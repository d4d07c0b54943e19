"""Uses the vLLM family without a server: `vllm_offline.py HOW CONFIG_JSON INPUTS_JSON`.

HOW is `sync`, `async`, or `left`: synchronous inside a running event loop, and never closed. Prints
one JSON object with what `infer` and `stream` gave.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import aclosing
from typing import Any

from truthgpt_serve import build_async_model, build_model

LONG = {"max_new_tokens": 500}


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


def main() -> None:
    how = sys.argv[1]
    config, inputs = map(json.loads, sys.argv[2:])
    if how == "sync":
        print(json.dumps(use(config, inputs)))
    else:
        function = use_async if how == "async" else use_and_leave
        print(json.dumps(asyncio.run(function(config, inputs))))


if __name__ == "__main__":
    main()
