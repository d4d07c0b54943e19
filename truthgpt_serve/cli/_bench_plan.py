"""The options of `truthgpt bench`, read into a plan."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import click

from truthgpt_serve.bench.arrivals import read_trace
from truthgpt_serve.bench.client import STREAMED
from truthgpt_serve.bench.load import Load
from truthgpt_serve.bench.metrics import SLO_NAMES
from truthgpt_serve.bench.outcome import Request
from truthgpt_serve.bench.prompts import (
    WORDS,
    RandomPrompts,
    cycle_requests,
    fixed_requests,
    random_requests,
    read_dataset,
)
from truthgpt_serve.bench.session import MakeRequests, Plan
from truthgpt_serve.bench.target import Target, normalize_url
from truthgpt_serve.cluster.defaults import KEY_VARIABLE

DEFAULT_CONCURRENCY = (1.0, 4.0, 16.0)
MAX_CONCURRENCY = 4096
_MIN_REQUESTS, _REQUESTS_PER_CLIENT, _RATE_S = 20, 8, 30.0


def numbers(option: str, text: str | None) -> list[float]:
    """Returns the numbers of a list such as `1,4,16`. Raises click.BadParameter."""
    if text is None:
        return []
    try:
        found = [float(item) for item in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(0 < number < float("inf") for number in found):
        raise click.BadParameter(
            f"{text!r} is not a list of numbers above 0, such as 1,4,16", param_hint=option
        )
    return list(dict.fromkeys(found))


def _percents(text: str) -> list[float]:
    found = sorted(set(numbers("--percentiles", text)))
    if found[-1] > 100:
        raise click.BadParameter("must be at most 100", param_hint="--percentiles")
    return found


def read_slo(text: str | None) -> dict[str, float]:
    """Returns the limits of `ttft=200,tpot=30,e2e=2000`. Raises click.BadParameter."""
    limits: dict[str, float] = {}
    for item in text.split(",") if text else ():
        name, _, value = item.partition("=")
        name = {"e2e": "e2el"}.get(name.strip(), name.strip())
        try:
            limits[name] = float(value)
        except ValueError:
            name = ""
        if name not in SLO_NAMES or not 0 <= limits[name] < float("inf"):
            message = f"{item!r} is not like ttft=200, tpot=30 or e2e=2000, in milliseconds"
            raise click.BadParameter(message, param_hint="--slo")
    return limits


def read_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the further fields of each request. Raises click.BadParameter."""
    fields: Any = {}
    if options["extra_body"] is not None:
        try:
            fields = json.loads(options["extra_body"])
        except ValueError:
            fields = None
        if not isinstance(fields, dict):
            raise click.BadParameter(
                'must be a JSON object, such as {"temperature": 0}', param_hint="--extra-body"
            )
    if options["ignore_eos"]:
        fields["ignore_eos"] = True
    return dict(fields)


def read_targets(options: Mapping[str, Any]) -> list[Target]:
    """Returns the address to measure, and the one to compare it with.

    Another host does not get the key of the first one.

    Raises:
        BenchError: An address is not valid.
        click.UsageError: A variable that shall hold a key is not set.
    """
    verify, url = not options["insecure"], normalize_url(options["url"])
    found = [Target(url, options["model"] or "", _key(options["api_key_env"]), verify)]
    if options["against"] is not None:
        other = normalize_url(options["against"])
        key = found[0].key if urlsplit(other).hostname == urlsplit(url).hostname else None
        if options["against_api_key_env"] is not None:
            key = _key(options["against_api_key_env"])
        model = options["against_model"] or options["model"] or ""
        found.append(Target(other, model, key, verify))
    return found


def _key(variable: str) -> str | None:
    key = os.environ.get(variable, "").strip()
    if not key and variable != KEY_VARIABLE:
        raise click.UsageError(f"the environment variable {variable} is not set")
    if not key.isprintable() or not key.isascii():
        raise click.UsageError(f"the environment variable {variable} holds no valid API key")
    return key or None


def read_loads(options: Mapping[str, Any]) -> list[Load]:
    """Returns the loads: a list of concurrencies, of rates, or one for a trace.

    Raises:
        click.UsageError: The options do not go together.
    """
    given = numbers("--concurrency", options["concurrency"])
    clients = [int(number) for number in given]
    rates = numbers("--rate", options["rate"])
    if clients != given or any(not 1 <= number <= MAX_CONCURRENCY for number in clients):
        raise click.BadParameter(
            f"must be whole numbers from 1 to {MAX_CONCURRENCY}", param_hint="--concurrency"
        )
    if (rates or options["trace"]) and len(clients) > 1:
        raise click.UsageError("with --rate or --trace, --concurrency is one number: the most")
    if rates and options["trace"]:
        raise click.UsageError("a trace has its own times: leave --rate or --trace out")
    num, duration_s = options["requests"], options["duration"]
    bound = clients[0] if clients else None
    if options["trace"]:
        return [Load(bound, None, num, duration_s)]
    if rates:
        return [
            Load(
                bound, rate, num or (None if duration_s else _at_least(rate * _RATE_S)), duration_s
            )
            for rate in rates
        ]
    return [
        Load(
            each,
            None,
            num or (None if duration_s else _at_least(each * _REQUESTS_PER_CLIENT)),
            duration_s,
        )
        for each in clients or map(int, DEFAULT_CONCURRENCY)
    ]


def _at_least(number: float) -> int:
    return max(_MIN_REQUESTS, round(number))


def read_plan(options: Mapping[str, Any]) -> Plan:
    """Returns the plan, without its requests.

    Raises:
        click.UsageError: The options do not go together.
    """
    given = [name for name in ("prompt", "dataset", "trace") if options[name] is not None]
    if len(given) > 1:
        raise click.UsageError(f"--{given[0]} and --{given[1]} exclude each other")
    return Plan(
        endpoint=options["endpoint"],
        loads=read_loads(options),
        num_pairs=options["pairs"] if options["against"] is not None else 1,
        burstiness=options["burstiness"],
        warmup=options["warmup"],
        timeout_s=options["timeout"],
        fields=read_fields(options),
        slo_ms=read_slo(options["slo"]),
        percents=_percents(options["percentiles"]),
        save_detailed=options["save_detailed"],
        seed=options["seed"],
        label=options["label"],
    )


async def with_requests(plan: Plan, options: Mapping[str, Any], target: Target) -> Plan:
    """Returns the plan with its requests. A server's tokenizer is asked for with `--unit tokens`.

    Raises:
        BenchError: A file cannot be read, or the server has no tokenizer to ask.
    """
    prompts = RandomPrompts()
    if options["unit"] == "tokens":
        prompts = await _token_prompts(target, plan.endpoint)
    if options["trace"] is not None:
        trace = read_trace(
            options["trace"],
            prompts,
            speed=options["trace_speed"],
            seed=str(plan.seed),
            chat=plan.endpoint == "chat",
        )
        return replace(plan, trace=trace)
    return replace(plan, make_requests=_make_requests(options, prompts))


async def _token_prompts(target: Target, endpoint: str) -> RandomPrompts:
    """Returns prompts of token ids where the endpoint takes them, else of as many words as fit."""
    ids = await target.tokenize(" ".join(WORDS))
    if endpoint in ("completions", "embeddings"):
        return RandomPrompts(sorted(set(ids)))
    return RandomPrompts(words_per_token=len(WORDS) / len(ids))


def _make_requests(options: Mapping[str, Any], prompts: RandomPrompts) -> MakeRequests:
    output_len = options["output_len"]
    if options["dataset"] is not None:
        rows = read_dataset(options["dataset"], output_len, chat=options["endpoint"] == "chat")
        return lambda lengths_seed, text_seed: cycle_requests(rows, lengths_seed)
    default = 128 if options["endpoint"] in STREAMED else None
    input_len = options["input_len"] or (6 if options["endpoint"] == "images" else 64)
    if options["prompt"] is not None:
        return lambda lengths_seed, text_seed: fixed_requests(
            options["prompt"], output_len or default
        )

    def make(lengths_seed: str, text_seed: str) -> Iterator[Request]:
        return random_requests(
            prompts,
            input_len=input_len,
            output_len=output_len or default,
            range_ratio=options["range_ratio"],
            lengths_seed=lengths_seed,
            text_seed=text_seed,
        )

    return make
