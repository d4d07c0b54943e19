"""Asks a running service for answers to random schemas: `python -m tests.schemas_run URL MODEL...`.

Each answer must be whole and validate. Prints how many did, and exits with 1 if one did not.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections import Counter
from typing import Any

import httpx
import jsonschema  # type: ignore[import-untyped]  # it has no types

from tests.support.grammar_schemas import small_schema

TIMEOUT_S = 300.0


async def judge(http: httpx.AsyncClient, model: str, seed: int, max_tokens: int) -> str:
    """Returns what became of one answer, in a word or two."""
    schema = small_schema(seed)
    bound = {"name": "answer", "schema": schema, "strict": True}
    body: dict[str, Any] = {
        "model": model,
        "messages": [{"role": "user", "content": "Tell me a story about Mia and a red boat."}],
        "temperature": 1.0,
        "seed": seed,
        "max_tokens": max_tokens,
        "response_format": {"type": "json_schema", "json_schema": bound},
    }
    answer = await http.post("/v1/chat/completions", json=body)
    if answer.status_code != 200:
        return f"status {answer.status_code}: {answer.text[:200]}"
    choice = answer.json()["choices"][0]
    if choice["finish_reason"] != "stop":
        return f"ended by {choice['finish_reason']}"
    try:
        jsonschema.validate(json.loads(choice["message"]["content"]), schema)
    except (ValueError, jsonschema.ValidationError) as error:
        return f"wrong: {str(error)[:200]}"
    return "valid"


async def ask_all(url: str, model: str, options: argparse.Namespace) -> Counter[str]:
    """Returns how often each outcome came."""
    turns = asyncio.Semaphore(options.clients)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S) as http:

        async def ask(seed: int) -> str:
            async with turns:
                return await judge(http, model, seed, options.max_tokens)

        seeds = range(options.first, options.first + options.count)
        return Counter(await asyncio.gather(*map(ask, seeds)))


def main() -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("models", nargs="+")
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="the seed of the first schema")
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--max-tokens", type=int, default=900)
    options = parser.parse_args()
    failed = 0
    for model in options.models:
        found = asyncio.run(ask_all(options.url.rstrip("/"), model, options))
        failed += options.count - found["valid"]
        print(f"{model}: {found['valid']} of {options.count} whole and valid", flush=True)
        for word, number in found.items():
            if word != "valid":
                print(f"  {number}: {word}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
