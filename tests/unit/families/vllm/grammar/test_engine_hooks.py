"""The parts of vLLM that the checks of grammars rest on are as they were."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("vllm")

from vllm.exceptions import GracefulHTTPError, VLLMValidationError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.structured_output import StructuredOutputManager

from deployments.vllm.grammar import engine_hooks as grammar_engine
from deployments.vllm.grammar import lane as grammar_lane
from deployments.vllm.grammar.engine_hooks import GuardedClient, as_compiled, grammar_of
from deployments.vllm.grammar.lane import PLACES, SlowLane
from truthgpt_serve.errors import OverloadedError, RequestError, ServerError
from truthgpt_serve.grammar.fields import Grammar
from truthgpt_serve.grammar.gate import Verdict

SCHEMA = {"type": "object", "properties": {"a": {"type": "number", "multipleOf": 2}}}


def params(**outputs: Any) -> SamplingParams:
    return SamplingParams(structured_outputs=StructuredOutputsParams(**outputs))


@pytest.mark.parametrize(
    ("outputs", "kind", "text"),
    [
        ({"json": SCHEMA}, "json", json.dumps(SCHEMA)),
        ({"json": "{}"}, "json", "{}"),
        ({"regex": "a+"}, "regex", "a+"),
        ({"choice": ["a", "b"]}, "choice", '["a", "b"]'),
        ({"grammar": 'root ::= "a"'}, "grammar", 'root ::= "a"'),
        ({"structural_tag": "{}"}, "structural_tag", "{}"),
    ],
)
def test_the_grammar_of_a_request_is_found(outputs: dict[str, Any], kind: str, text: str) -> None:
    found = grammar_of(params(**outputs))
    assert found is not None
    assert (found.kind, found.text) == (kind, text)


def test_a_request_without_one_has_none() -> None:
    assert grammar_of(SamplingParams()) is None
    assert grammar_of(params(json_object=True)) is None


def test_what_is_compiled_is_what_the_engine_compiles() -> None:
    assert as_compiled("choice", '["a", "b\\n"]') == ("grammar", 'root ::= "a" | "b\\n"')
    assert as_compiled("grammar", 'start: "a"') == ("lark", 'start: "a"')
    assert as_compiled("grammar", 'root ::= "a"') == ("grammar", 'root ::= "a"')
    for text in ("[]", "[1]", "5", "{"):
        with pytest.raises(ValueError, match=r"list of strings|empty|Expecting"):
            as_compiled("choice", text)
    with pytest.raises(ValueError, match="must be true"):
        as_compiled("json_object", "false")


class Gate:
    """Answers as it is told."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.seen: list[Grammar] = []

    async def check(self, grammar: Grammar) -> Verdict:
        self.seen.append(grammar)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return Verdict("ok", "", answer, 0.0)


class Client:
    """What `GuardedClient` needs of vLLM's client: `add_request` validates as vLLM does."""

    def __init__(self, backend: str = "auto") -> None:
        self.added: list[tuple[float, SamplingParams]] = []
        self.config = SimpleNamespace(backend=backend)
        self.output_processor = SimpleNamespace(request_states={})

    async def add_request(self, request_id: str, prompt: Any, params: Any, **_: Any) -> Any:
        model = SimpleNamespace(is_diffusion=False)
        params._validate_structured_outputs(model, self.config, object())
        self.added.append((asyncio.get_running_loop().time(), params))
        return Queue(request_id)


def add(client: Client, gate: Gate, *requests: SamplingParams) -> None:
    grammar_engine.mend_checks()
    guarded: Any = GuardedClient(client, gate)  # type: ignore[arg-type]

    async def main() -> None:
        await asyncio.gather(*(guarded.add_request("id", "x", one) for one in requests))

    asyncio.run(main())


def test_a_checked_grammar_is_not_checked_again() -> None:
    client, gate = Client(), Gate(0.0, 0.0)
    add(client, gate, params(choice=["a"]), params(json=SCHEMA))
    choice, schema = (one.structured_outputs for _, one in client.added)
    assert choice is not None
    assert (choice.grammar, choice.choice, choice._backend) == ('root ::= "a"', None, "xgrammar")
    assert schema is not None
    assert schema._backend == "xgrammar", "vLLM would have fallen back to another library"
    assert schema._backend_was_auto


def test_the_library_that_the_configuration_names_keeps_its_own_refusals() -> None:
    with pytest.raises(VLLMValidationError, match="does not support"):
        add(Client("xgrammar"), Gate(0.0), params(json=SCHEMA))


def test_a_refusal_keeps_its_status() -> None:
    client = Client()
    with pytest.raises(VLLMValidationError) as refused:
        add(client, Gate(RequestError("too large", param="tools")), params(regex="a"))
    assert refused.value.parameter == "tools"
    with pytest.raises(GracefulHTTPError) as busy:
        add(client, Gate(OverloadedError("busy")), params(regex="a"))
    assert busy.value.http_status == 429
    assert not client.added


class Queue:
    """What a request's outputs go into."""

    def __init__(self, request_id: str) -> None:
        self.request_id = request_id
        self.outputs: list[str] = []

    def put(self, output: str) -> None:
        self.outputs.append(output)


def test_slow_grammars_reach_the_engine_a_few_at_a_time_and_quick_ones_pass_them() -> None:
    slow = [params(regex=f"slow{number}") for number in range(PLACES + 1)]
    client, gate = Client(), Gate(*[9.0] * len(slow), 0.0, 9.0)
    guarded: Any = GuardedClient(client, gate)  # type: ignore[arg-type]

    async def main() -> None:
        async def add(one: SamplingParams) -> Any:
            return await guarded.add_request("id", "x", one)

        tasks = [asyncio.create_task(add(one)) for one in slow]
        first = await tasks[0]
        await tasks[1]
        await add(params(regex="quick"))
        await add(params(regex="slow0"))  # the engine has it already
        assert not tasks[2].done()
        first.put("output")
        await asyncio.wait_for(tasks[2], 10)
        first.put("more")
        assert first.outputs == ["output", "more"]

    asyncio.run(main())
    found = [one.structured_outputs.regex for _, one in client.added]
    assert found == ["slow0", "slow1", "quick", "slow0", "slow2"]


def test_a_request_that_the_engine_refuses_leaves_its_place() -> None:
    number = 2 * PLACES
    gate = Gate(*[9.0] * number)
    guarded: Any = GuardedClient(Client("xgrammar"), gate)  # type: ignore[arg-type]
    grammar_engine.mend_checks()

    async def main() -> None:
        for index in range(number):
            refused = guarded.add_request("id", "x", params(json={**SCHEMA, "title": str(index)}))
            with pytest.raises(VLLMValidationError):
                await asyncio.wait_for(refused, 10)

    asyncio.run(main())


def test_a_place_is_free_again_when_nothing_comes_of_its_grammar(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grammar_lane, "_PATIENCE", 0.0)

    async def main() -> None:
        lane = SlowLane()
        for number in range(2 * PLACES):
            assert await asyncio.wait_for(lane.enter(("regex", str(number)), 9.0), 10)

    asyncio.run(main())


def test_an_engine_that_is_stuck_with_a_grammar_is_not_healthy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Client()
    guarded: Any = GuardedClient(client, Gate(0.0))  # type: ignore[arg-type]
    state = SimpleNamespace(is_prefilling=True)
    client.output_processor.request_states["id"] = state
    asyncio.run(guarded.add_request("id", "x", params(regex="a")))
    guarded.check_health()
    monkeypatch.setattr(grammar_engine, "STUCK_S", 0.0)
    monkeypatch.setattr(grammar_engine, "_num_deferred", lambda: 1.0)
    with pytest.raises(ServerError, match="stuck"):
        guarded.check_health()
    state.is_prefilling = False
    guarded.check_health()


def test_the_engine_gets_threads_and_its_library() -> None:
    grammar_engine.mend_engine()
    grammar_engine.mend_engine()  # a second time does nothing
    assert hasattr(StructuredOutputManager.__init__, "__wrapped__")
    assert hasattr(StructuredOutputManager.grammar_init, "__wrapped__")
