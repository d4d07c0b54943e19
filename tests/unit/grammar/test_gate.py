"""Grammars are compiled in processes of their own: in time, in bounds, whatever they are."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import psutil
import pytest
import xgrammar as xgr

from tests.support.grammar_schemas import hostile, ordinary, small_schema, wide
from truthgpt_serve.config.text_limits import TextLimitsSection
from truthgpt_serve.errors import OverloadedError, RequestError, TruthGPTError, UnavailableError
from truthgpt_serve.grammar import gate as grammar_gate
from truthgpt_serve.grammar.fields import Grammar, find_grammars
from truthgpt_serve.grammar.gate import GrammarGate
from truthgpt_serve.grammar.kinds import as_compiled as as_bound

WORDS = [*(bytes([code]) for code in range(256)), b' "', b'": ', b'", "', b"</s>"]
BUSY_S = 20  # more than any limit here and what a busy machine adds


def describe() -> dict[str, Any]:
    info = xgr.TokenizerInfo(WORDS, vocab_type=xgr.VocabType.RAW, stop_token_ids=[len(WORDS) - 1])
    return {"tokenizer_info": info.serialize_json(), "any_whitespace": True, "threads": 1}


def as_compiled(kind: str, text: str) -> tuple[str, str]:
    if kind == "choice":
        choices = json.loads(text)
        if not choices or not all(isinstance(one, str) for one in choices):
            raise ValueError("must be a list of strings")
        return "grammar", "root ::= " + " | ".join(map(json.dumps, choices))
    return ("lark", text) if kind == "grammar" and "::=" not in text else (kind, text)


@asynccontextmanager
async def gate(**limits: Any) -> AsyncIterator[GrammarGate]:
    one = GrammarGate(TextLimitsSection(**limits).model_dump(), describe, as_compiled)
    try:
        await one.check(Grammar("regex", "start", "x"))
        yield one
    finally:
        one.close()


def run(test: Callable[[GrammarGate], Awaitable[None]], **limits: Any) -> None:
    async def main() -> None:
        async with gate(**limits) as one, asyncio.timeout(120):
            await test(one)

    asyncio.run(main())


def schema(value: Any) -> Grammar:
    return Grammar("json", json.dumps(value), "response_format.schema")


async def refusal(one: GrammarGate, grammar: Grammar) -> RequestError:
    with pytest.raises(RequestError) as caught:
        await one.check(grammar)
    assert caught.value.param == grammar.param
    assert f"`{grammar.param}`" in caught.value.message
    return caught.value


async def pass_ordinary_ones(one: GrammarGate) -> None:
    for seed in range(60):
        verdict = await one.check(schema(ordinary(seed)))
        assert verdict.outcome == "ok"


@pytest.mark.long("compiles many grammars")
def test_small_ones_pass_whenever_their_process_begins() -> None:
    async def check(one: GrammarGate) -> None:
        verdicts = [await one.check(schema(small_schema(seed))) for seed in range(60)]
        assert {verdict.outcome for verdict in verdicts} == {"ok"}

    run(check)


@pytest.mark.long("compiles many grammars")
def test_hostile_ones_pass_or_are_refused_in_time() -> None:
    async def check(one: GrammarGate) -> None:
        for seed in range(50):
            for grammar in find_grammars({"structured_outputs": hostile(seed)}):
                started = time.monotonic()
                with contextlib.suppress(RequestError):
                    await one.check(grammar)
                assert time.monotonic() - started < BUSY_S, (seed, grammar.text[:80])
        await one.check(Grammar("regex", "[ab]", "x"))

    run(check, max_grammar_s=1.0)


ENDLESS = "root ::= a\na ::= b\nb ::= a"
LOOP = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
CALL = {
    "type": "structural_tag",
    "format": {
        "type": "tag",
        "begin": '<tool_call>{"name": "a_function_of_a_long_name", "arguments": ',
        "content": {"type": "json_schema", "json_schema": LOOP},
        "end": "}</tool_call>",
    },
}
WRONG = [
    Grammar("structural_tag", json.dumps(CALL), "tools"),
    Grammar("grammar", ENDLESS, "structured_outputs.grammar"),
    Grammar("grammar", 'root ::= "a" b\nb ::= b', "x"),
    Grammar("grammar", "root ::= nosuch", "x"),
    Grammar("grammar", "root ::= " + "(" * 20_000 + '"a"' + ")" * 20_000, "x"),
    Grammar("grammar", 'start: "a" nosuch', "x"),
    Grammar("json", json.dumps(LOOP), "x"),
    Grammar("json", json.dumps({"type": "foo"}), "x"),
    Grammar("json", json.dumps({"enum": []}), "x"),
    Grammar("json", json.dumps({"$ref": "#/nope"}), "x"),
    Grammar("json", "{", "x"),
    Grammar("json", "5", "x"),
    Grammar("regex", "((", "x"),
    Grammar("regex", "(?=a)b", "x"),
    Grammar("choice", "[]", "x"),
    Grammar("choice", "[1]", "x"),
    Grammar("choice", "nonsense", "x"),
    Grammar("structural_tag", "nonsense", "x"),
    Grammar("structural_tag", "{}", "x"),
    Grammar("structural_tag", json.dumps({"structures": [{}], "triggers": []}), "x"),
]


async def refuse_wrong_ones_again(one: GrammarGate) -> None:
    for grammar in WRONG:
        first = await refusal(one, grammar)
        assert (await refusal(one, grammar)).message == first.message


@pytest.mark.long("compiles many grammars")
def test_ordinary_ones_pass_and_wrong_ones_are_refused_and_remembered() -> None:
    async def check(one: GrammarGate) -> None:
        await pass_ordinary_ones(one)
        await refuse_wrong_ones_again(one)

    run(check)


@pytest.mark.parametrize("kind", ["json", "choice"])
def test_one_that_nests_too_deeply_is_refused(kind: str) -> None:
    one = GrammarGate(TextLimitsSection().model_dump(), None, as_bound)
    deep = Grammar(kind, "[" * 50_000 + "]" * 50_000, "response_format.schema")
    assert "is nested too deeply" in asyncio.run(refusal(one, deep)).message


@pytest.mark.long("compiles large grammars")
def test_a_slow_one_fails_alone() -> None:
    limit_s = 3.0  # it takes 8 s on a fast processor

    async def check(one: GrammarGate) -> None:
        slow = asyncio.create_task(refusal(one, schema(wide(8000))))
        await asyncio.sleep(0.3)
        for number in range(5):
            await one.check(schema(ordinary(number)))
        assert not slow.done(), "the ordinary ones did not wait for it"
        assert "`serving.limits.max_grammar_s`" in (await slow).message
        started = time.monotonic()
        await refusal(one, schema(wide(8000)))
        assert time.monotonic() - started < limit_s, "it is remembered"

    run(check, max_grammar_s=limit_s)


@pytest.mark.long("compiles large grammars")
def test_where_many_are_slow_the_others_still_get_their_turn() -> None:
    async def check(one: GrammarGate) -> None:
        slow = [
            asyncio.create_task(one.check(schema(wide(6000 + number))))
            for number in range(2 * grammar_gate.MAX_RUNNING)
        ]
        await asyncio.sleep(0.3)
        started = time.monotonic()
        await one.check(schema(ordinary(1)))
        assert time.monotonic() - started < 10
        for result in await asyncio.gather(*slow, return_exceptions=True):
            done = isinstance(result, grammar_gate.Verdict) and result.outcome == "ok"
            assert done or isinstance(result, (OverloadedError, RequestError)), result

    run(check, max_grammar_s=15.0)


@pytest.mark.parametrize(
    ("grammar", "key"),
    [
        (schema(wide(20_000)), "max_schema_bytes"),
        (Grammar("choice", json.dumps(["x" * 300_000]), "x"), "max_schema_bytes"),
        (Grammar("tools", json.dumps([wide(20_000)]), "tools"), "max_schema_bytes"),
        (Grammar("regex", "|".join(f"w{i}" for i in range(100_000)), "x"), "max_regex_bytes"),
        (schema({"items": {"type": "string", "pattern": "a" * 20_000}}), "max_regex_bytes"),
        (schema({"patternProperties": {"a" * 20_000: {}}}), "max_regex_bytes"),
    ],
)
def test_a_large_one_is_refused_unseen(grammar: Grammar, key: str) -> None:
    def unreached() -> dict[str, Any]:
        raise AssertionError("it needs no compiling process")

    one = GrammarGate(TextLimitsSection().model_dump(), unreached, as_compiled)
    assert f"`serving.limits.{key}`" in asyncio.run(refusal(one, grammar)).message


@pytest.mark.long("starts processes that compile")
def test_a_compiling_process_that_dies_is_replaced() -> None:
    async def check(one: GrammarGate) -> None:
        process = compiling_process()
        slow = asyncio.create_task(one.check(schema(wide(6000))))
        await asyncio.sleep(0.5)
        children = process.children()
        assert children
        process.send_signal(signal.SIGKILL)
        with pytest.raises(UnavailableError):
            await slow
        await one.check(Grammar("regex", "again", "x"))
        gone, alive = await asyncio.to_thread(psutil.wait_procs, children, 10)
        assert gone
        assert not alive, "what it compiled dies with it"

    run(check, max_grammar_s=60.0)


def test_a_model_whose_tokenizer_has_no_compiler_keeps_its_engine_s_own_checks() -> None:
    def fail() -> dict[str, Any]:
        raise ValueError("no such tokenizer")

    async def main() -> None:
        for describe_nothing in (fail, None):
            one = GrammarGate(TextLimitsSection().model_dump(), describe_nothing, as_compiled)
            for _ in range(2):
                assert (await one.check(Grammar("regex", "((", "x"))).outcome == "unchecked"
            await refusal(one, schema(wide(20_000)))
            one.close()

    asyncio.run(main())


@pytest.mark.long("starts processes that compile")
def test_nothing_outlives_the_gate() -> None:
    found: list[psutil.Process] = []

    async def check(one: GrammarGate) -> None:
        slow = asyncio.create_task(one.check(schema(wide(6000))))
        await asyncio.sleep(0.5)
        process = compiling_process()
        found.extend([process, *process.children(recursive=True)])
        one.close()
        with pytest.raises(TruthGPTError):
            await slow

    run(check, max_grammar_s=60.0)
    assert len(found) == 2
    assert not psutil.wait_procs(found, 10)[1]


def compiling_process() -> psutil.Process:
    """Returns this process's one child that compiles grammars."""
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # one that has ended: of another test
            if "grammar.worker" in " ".join(child.cmdline()):
                found.append(child)
    (process,) = found
    return process


def hold_a_gate() -> None:
    """Prints the compiling process and keeps it; run in a process that a test kills."""

    async def main() -> None:
        async with gate():
            print(psutil.Process().children()[0].pid, flush=True)
            await asyncio.sleep(600)

    asyncio.run(main())


@pytest.mark.long("starts processes that compile")
def test_a_gate_dies_with_its_replica() -> None:
    code = f"from {__name__} import hold_a_gate; hold_a_gate()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as replica:
        try:
            assert replica.stdout is not None
            worker = psutil.Process(int(replica.stdout.readline()))
        finally:
            replica.kill()
    assert not psutil.wait_procs([worker], 10)[1]
