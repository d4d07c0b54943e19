"""The family echo: what it says, and that its clock does not drift."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import pytest

from deployments.echo.deployment import EchoModel
from deployments.echo.engine import EchoFailure, WhitespaceTokenizer, echo_tokens
from truthgpt_serve.errors import RequestError
from truthgpt_serve.usage.counted import Usage, counting


def echo(**engine: Any) -> EchoModel:
    model = EchoModel()
    model.load({"serving": {"engine": engine}})
    return model


@pytest.mark.parametrize(
    ("prompt", "text"),
    [
        ("a b", " a b a b a"),
        ("  a\nb", "a b a b a"),
        ("", " echo echo echo echo echo"),
        ("one", " one one one one one"),
    ],
)
def test_the_words_come_again_and_never_begin_with_the_prompt(prompt: str, text: str) -> None:
    assert "".join(echo_tokens(prompt, 5)) == text
    assert not prompt or not text.startswith(prompt)
    assert len(WhitespaceTokenizer().encode(text)) == 5


async def test_infer_and_stream_agree() -> None:
    model = echo(num_tokens=3)
    assert await model.infer({"text": "x y"}) == {"text": " x y x", "finish_reason": "length"}
    items = [item async for item in model.stream({"text": "x y", "max_new_tokens": 2})]
    assert items == [{"text": " x"}, {"text": " y"}, {"text": "", "finish_reason": "length"}]


async def test_a_client_that_leaves_pays_for_what_was_said() -> None:
    usage = Usage()
    with counting(usage):
        task = asyncio.create_task(echo(token_interval_s=0.02).infer({"text": "a"}))
    await asyncio.sleep(0.2)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert 1 <= usage.completion_tokens <= 10
    assert not usage.prompt_tokens  # the route counts them


async def test_a_stop_text_ends_it() -> None:
    outputs = await echo().infer({"text": "a b c", "stop": ["zz", "c a"]})
    assert outputs == {"text": " a b ", "finish_reason": "stop", "stop_reason": "c a"}


@pytest.mark.parametrize(
    "inputs",
    [
        *({"max_new_tokens": value} for value in (0.5, "4", True, -1, [1], 10**30)),
        *({"stop": value} for value in (5, [None], {"a": 1}, [["a"]])),
        {"text": None},
    ],
)
async def test_inputs_of_another_type_are_refused(inputs: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as raised:
        await echo(num_tokens=1).infer({"text": "a", **inputs})
    assert raised.value.param == f"inputs.{next(iter(inputs))}"


async def test_64_tokens_of_5_ms_take_320_ms() -> None:
    model = echo(token_interval_s=0.005)
    seconds = []
    for _ in range(20):  # one of them runs undisturbed, also on a busy machine
        start = time.monotonic()
        async for _ in model.stream({"text": "a", "max_new_tokens": 64}):
            pass
        seconds.append(time.monotonic() - start)
        if seconds[-1] < 0.36:
            break
    assert 0.319 < min(seconds) < 0.36, "sleeping must not add up"


async def test_the_first_token_has_a_time_of_its_own() -> None:
    model = echo(tokens_per_second=1000, time_to_first_token_s=0.1)
    start = time.monotonic()
    async for _ in model.stream({"text": "a", "max_new_tokens": 2}):
        assert time.monotonic() - start >= 0.1


async def test_it_fails_where_its_settings_say_and_leaves_nothing_ongoing() -> None:
    model = echo(fail_after=2)
    stream = model.stream({"text": "a"})
    assert [await anext(stream), await anext(stream)] == [{"text": " a"}] * 2
    assert model.ongoing == 1
    with pytest.raises(EchoFailure, match="echo fails after 2 tokens"):
        await anext(stream)
    assert model.ongoing == 0


async def test_a_closed_stream_is_not_ongoing() -> None:
    model = echo()
    stream = model.stream({"text": "a"})
    await anext(stream)
    await stream.aclose()
    assert model.ongoing == 0


def test_the_chat_template_is_the_last_user_message() -> None:
    render = WhitespaceTokenizer().apply_chat_template
    user = {"role": "user", "content": "hi"}
    assert render([user, {"role": "assistant", "content": "yes"}], tokenize=False) == "hi"
    assert render([{"role": "system", "content": "be"}]) == "be"
