"""Text generation of the family `hf-transformers`, against transformers' own `generate`."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import openai
import pytest
import torch
import transformers

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.sample_models import wait_until
from tests.support.tiny_transformers.models import (
    make_one_layer_llama,
    make_tiny_seq2seq,
    make_tiny_state_space,
)
from tests.support.transformers_models import client_of, configuration, loaded
from truthgpt_serve.errors import ConfigError, OverloadedError, RequestError, UnavailableError
from truthgpt_serve.usage.counted import Usage, counting

PROMPTS = [f"number {index} of many " * (1 + index % 9) for index in range(32)]
NUM_TOKENS = 24
COMPILE_S = 400


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("llama") / "model")


@pytest.fixture(scope="module")
def one_layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same without its second layer, for tests that compile: that takes by far the longest."""
    return make_one_layer_llama(tmp_path_factory.mktemp("one_layer") / "model")


class Reference:
    """The plain library, one text at a time."""

    def __init__(self, path: Path) -> None:
        kind: Any = transformers.AutoModelForCausalLM
        if transformers.AutoConfig.from_pretrained(path).is_encoder_decoder:
            kind = transformers.AutoModelForSeq2SeqLM
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
        self.model = kind.from_pretrained(path, dtype=torch.float32)
        self._known: dict[str, list[int]] = {}

    def tokens(self, text: str, **options: Any) -> list[int]:
        """Returns what the model adds to a text; several tests ask for the same."""
        asked = repr((text, options))
        if asked not in self._known:
            self._known[asked] = self._make(text, **options)
        return self._known[asked]

    def _make(self, text: str, **options: Any) -> list[int]:
        inputs = self.tokenizer(text, return_tensors="pt", return_token_type_ids=False)
        options = {"max_new_tokens": NUM_TOKENS, "do_sample": False, **options}
        found: list[int] = self.model.generate(**inputs, **options)[0].tolist()
        if self.model.config.is_encoder_decoder:
            return found[1:]  # behind the token that starts the decoder
        num_prompt: int = inputs.input_ids.shape[1]
        return found[num_prompt:]

    def text(self, text: str, **options: Any) -> str:
        tokens = self.tokens(text, **options)
        return str(self.tokenizer.decode(tokens, skip_special_tokens=True))


@pytest.fixture(scope="module")
def reference(llama: Path) -> Reference:
    return Reference(llama)


@pytest.fixture(scope="module", params=["continuous", "padded"])
def model(llama: Path, request: pytest.FixtureRequest) -> Iterator[Any]:
    with loaded(configuration(llama, batching=request.param)) as model:
        yield model


def inputs(text: str, **fields: Any) -> dict[str, Any]:
    return {"text": text, "max_new_tokens": NUM_TOKENS, "temperature": 0, **fields}


async def collect(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


@pytest.mark.long("compares many texts")
async def test_32_texts_together_are_those_of_one_at_a_time(
    model: Any, reference: Reference
) -> None:
    together = await asyncio.gather(*(model.infer(inputs(text)) for text in PROMPTS))
    assert [answer["text"] for answer in together] == [reference.text(text) for text in PROMPTS]
    assert len({answer["text"] for answer in together}) > 8
    assert {answer["finish_reason"] for answer in together} == {"length"}
    assert [answer["usage"]["completion_tokens"] for answer in together] == [NUM_TOKENS] * 32
    prompts = [len(reference.tokenizer.encode(text)) for text in PROMPTS]
    assert [answer["usage"]["prompt_tokens"] for answer in together] == prompts
    assert model.ongoing == 0


async def test_a_client_that_leaves_pays_for_what_was_made(model: Any) -> None:
    usage = Usage()
    with counting(usage):
        task = asyncio.create_task(model.infer(inputs(PROMPTS[0], max_new_tokens=900)))
    await asyncio.sleep(0.1)
    while not model.ongoing:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert 1 <= usage.completion_tokens < 900


async def test_texts_that_join_later_change_nothing(model: Any, reference: Reference) -> None:
    async def later(index: int) -> Any:
        await asyncio.sleep(0.004 * index)
        return await model.infer(inputs(PROMPTS[index], max_new_tokens=8 + index))

    found = await asyncio.gather(*(later(index) for index in range(16)))
    for index, answer in enumerate(found):
        assert answer["text"] == reference.text(PROMPTS[index], max_new_tokens=8 + index)


async def test_the_same_seed_gives_the_same_text_in_any_company(model: Any) -> None:
    fields = {"temperature": 1.0, "top_p": 0.95, "top_k": 40, "min_p": 0.01}
    alone = await model.infer(inputs("once", seed=7, **fields))
    company = [
        model.infer(inputs(text, seed=index, **fields)) for index, text in enumerate(PROMPTS)
    ]
    *others, again = await asyncio.gather(*company, model.infer(inputs("once", seed=7, **fields)))
    assert again["text"] == alone["text"]
    seeds = await asyncio.gather(*(model.infer(inputs("once", seed=s, **fields)) for s in range(6)))
    assert len({answer["text"] for answer in seeds}) == 6
    unseeded = [await model.infer(inputs("once", temperature=1.5)) for _ in range(3)]
    assert len({answer["text"] for answer in unseeded}) == 3
    assert len(others) == 32


async def test_penalties_are_those_of_transformers(model: Any, reference: Reference) -> None:
    found = await model.infer(inputs("again and again and", repetition_penalty=1.7))
    assert found["text"] == reference.text("again and again and", repetition_penalty=1.7)
    plain = await model.infer(inputs("again and again and", max_new_tokens=60))
    held = await model.infer(
        inputs("again and again and", max_new_tokens=60, frequency_penalty=2, presence_penalty=2)
    )
    words = [len(set(answer["text"].split())) for answer in (plain, held)]
    assert words[1] > words[0]


async def test_a_stop_string_ends_the_text_before_it(model: Any, reference: Reference) -> None:
    whole = reference.text(PROMPTS[0])
    stop = whole[11:14]
    answer = await model.infer(inputs(PROMPTS[0], stop=[stop, "never said"]))
    assert answer["text"] == whole[: whole.index(stop)]
    assert answer["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] < NUM_TOKENS
    items = await collect(model.stream(inputs(PROMPTS[0], stop=[stop])))
    assert "".join(item["text"] for item in items) == answer["text"]
    assert items[-1]["finish_reason"] == "stop"


async def test_an_end_token_ends_the_text(llama: Path, model: Any, reference: Reference) -> None:
    tokens = reference.tokens(PROMPTS[3])
    end = tokens[6]
    engine = model._engine
    info = engine._info
    engine._info = replace(info, defaults=replace(info.defaults, end_ids=frozenset({end})))
    try:
        answer = await model.infer(inputs(PROMPTS[3]))
        ignoring = await model.infer(inputs(PROMPTS[3], ignore_eos=True))
        longer = await model.infer(inputs(PROMPTS[3], min_tokens=tokens.index(end) + 3))
    finally:
        engine._info = info
    assert answer["finish_reason"] == "stop"
    assert answer["usage"]["completion_tokens"] == tokens.index(end) + 1
    assert answer["text"] == reference.tokenizer.decode(tokens[: tokens.index(end)])
    assert ignoring["text"] == reference.text(PROMPTS[3])
    assert longer["usage"]["completion_tokens"] > tokens.index(end) + 1


async def test_tokens_come_one_by_one(model: Any, reference: Reference) -> None:
    items = await collect(model.stream(inputs(PROMPTS[1])))
    assert "".join(item["text"] for item in items) == reference.text(PROMPTS[1])
    assert len(items) > 4, "not in one lump; what waits for a busy reader is joined"
    assert [item for item in items[:-1] if set(item) != {"text"}] == []
    assert set(items[-1]) == {"text", "finish_reason", "usage"}


async def test_a_whole_text_wakes_its_reader_once(model: Any, reference: Reference) -> None:
    engine = model._engine
    woken: list[bool] = []
    original = engine.submit

    def submit(call: Any, **options: Any) -> Any:
        job = original(call, **options)
        take = job.channel.get

        async def get() -> list[Any]:
            pieces: list[Any] = await take()
            woken.append(job.finished)
            return pieces

        job.channel.get = get
        return job

    engine.submit = submit
    try:
        answer = await model.infer(inputs(PROMPTS[1]))
    finally:
        engine.submit = original
    assert answer["text"] == reference.text(PROMPTS[1])
    assert woken == [True, True], "the pieces, and then the end"


async def test_leaving_frees_the_place_within_one_token(model: Any) -> None:
    seen = record_rows(model)
    stream = model.stream(inputs(PROMPTS[2], max_new_tokens=3000))
    for _ in range(5):
        await anext(stream)
    await stream.aclose()
    assert model.ongoing == 0
    made = len(seen)
    await asyncio.sleep(0.3)
    assert len(seen) <= made + 2, "the text was made on after its reader had left"
    again = await asyncio.wait_for(model.infer(inputs("next", max_new_tokens=2)), 5)
    assert again["usage"]["completion_tokens"] == 2


def record_rows(model: Any) -> list[int]:
    """Returns a list that grows by one with each token of any text."""
    seen: list[int] = []
    engine = model._engine
    original: Callable[[Any], Any] = engine._take

    def take(update: Any) -> Any:
        seen.extend(update.tokens)
        return original(update)

    engine._take = take
    return seen


async def test_cancelling_a_task_frees_its_place(model: Any) -> None:
    tasks = [
        asyncio.create_task(model.infer(inputs(text, max_new_tokens=3000))) for text in PROMPTS[:8]
    ]
    await asyncio.sleep(0.05)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert all(task.cancelled() for task in tasks)
    assert model.ongoing == 0
    answer = await asyncio.wait_for(model.infer(inputs("next", max_new_tokens=2)), 5)
    assert answer["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"text": 5}, "`text` must be a string"),
        ({"text": ""}, "`text` is empty"),
        ({"max_new_tokens": 0}, "`max_new_tokens` must be at least 1, not 0"),
        ({"max_new_tokens": True}, "`max_new_tokens` must be a whole number"),
        ({"temperature": 3}, "`temperature` must be at most 2, not 3"),
        ({"top_p": 0}, "`top_p` must be more than 0, not 0"),
        ({"seed": 1.5}, "`seed` must be a whole number, not 1.5"),
        ({"stop": [""]}, "`stop` must be a string or a list"),
        ({"ignore_eos": "yes"}, "`ignore_eos` must be true or false"),
        ({"tempreature": 1}, "unknown field `tempreature`; did you mean `temperature`?"),
        ({"text": "word " * 5000}, "maximum context length is 4096 tokens"),
    ],
)
async def test_a_wrong_input_is_refused_by_name(
    model: Any, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError) as caught:
        await model.infer({**inputs("x"), **fields})
    assert message in caught.value.message
    assert caught.value.param == next(iter(fields))


async def test_an_answer_ends_where_the_model_does(llama: Path) -> None:
    cfg = configuration(llama, max_model_len=40, max_new_tokens=100, default_max_new_tokens=90)
    with loaded(cfg) as model:
        answer = await model.infer({"text": "one two three", "temperature": 0})
        assert answer["finish_reason"] == "length"
        assert answer["usage"]["total_tokens"] == 40
        with pytest.raises(RequestError, match="is 101; this model makes at most 100 tokens"):
            await model.infer({"text": "one", "max_new_tokens": 101})


async def test_a_small_cache_holds_many_texts_one_after_another(
    llama: Path, reference: Reference
) -> None:
    cfg = configuration(
        llama,
        batching="continuous",
        max_model_len=160,
        max_batch_tokens=64,
        kv_cache_bytes=(1024 + 64 * 4) * 320,
        prefix_cache=False,
    )
    with loaded(cfg) as model:
        assert model._engine._backend.max_tokens == 320
        texts = PROMPTS[3:11]
        found = await asyncio.gather(*(model.infer(inputs(t, max_new_tokens=40)) for t in texts))
        num_tokens = [answer["usage"]["total_tokens"] for answer in found]
        assert sum(num_tokens) > 1.5 * 320, "they do not fit at once"
        expected = [reference.text(text, max_new_tokens=40) for text in texts]
        assert [answer["text"] for answer in found] == expected


async def test_too_many_texts_are_refused(llama: Path) -> None:
    limits = {"serving": {"max_ongoing_requests": 2, "max_queued_requests": 1, "engine": {}}}
    with loaded(configuration(llama, sections=limits)) as model:
        tasks = [
            asyncio.create_task(model.infer(inputs("x", max_new_tokens=2000))) for _ in range(6)
        ]
        await asyncio.wait(tasks, timeout=60, return_when=asyncio.FIRST_EXCEPTION)
        refused = [task for task in tasks if task.done()]
        assert refused
        assert all(isinstance(task.exception(), OverloadedError) for task in refused)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_closing_ends_the_texts_and_the_threads(llama: Path) -> None:
    before = set(threading.enumerate())
    for batching in ("continuous", "padded"):
        with loaded(configuration(llama, batching=batching)) as model:
            task = asyncio.create_task(model.infer(inputs("x", max_new_tokens=4000)))
            await asyncio.sleep(0.1)
            started = time.monotonic()
            await asyncio.to_thread(model.close)
            assert time.monotonic() - started < 5
            with pytest.raises(UnavailableError):
                await task
            with pytest.raises(UnavailableError):
                await model.infer(inputs("x"))
            model.close()
    wait_until(
        lambda: {t for t in set(threading.enumerate()) - before if t.name != "asyncio_0"} == set()
    )


async def test_a_dead_engine_is_noticed(model: Any, llama: Path) -> None:
    model.check_health()
    with loaded(configuration(llama, batching="continuous")) as other:
        task = asyncio.create_task(other.infer(inputs("x", max_new_tokens=4000)))
        await asyncio.sleep(0.1)

        def broken(*_args: Any, **_options: Any) -> Any:
            raise RuntimeError("the weights are gone")

        other._engine._backend._manager.model.forward = broken
        with pytest.raises(Exception, match="the weights are gone"):
            await asyncio.wait_for(task, 10)
        with pytest.raises(UnavailableError):
            await asyncio.to_thread(wait_until, lambda: other.check_health() is not None)


@pytest.mark.parametrize("make", [make_tiny_seq2seq, make_tiny_state_space])
async def test_other_architectures_run_in_padded_batches(
    make: Callable[[Path], Path], tmp_path: Path
) -> None:
    path = make(tmp_path / "model")
    reference = Reference(path)
    texts = ["the cat", "a small red dog runs", "blue", "the large tree sleeps under the cat"] * 2
    with loaded(configuration(path)) as model:
        assert model._engine.batching == "padded"
        found = await asyncio.gather(*(model.infer(inputs(text)) for text in texts))
    assert [answer["text"] for answer in found] == [reference.text(text) for text in texts]
    with pytest.raises(ConfigError, match="continuous batching does not work with"):
        loaded(configuration(path, batching="continuous")).__enter__()


async def test_without_cache_the_text_is_the_same(llama: Path, reference: Reference) -> None:
    with loaded(configuration(llama, use_cache=False)) as model:
        assert model._engine.batching == "padded"
        assert (await model.infer(inputs("the end")))["text"] == reference.text("the end")


@pytest.mark.long("compiles a model")
@pytest.mark.timeout(COMPILE_S)
async def test_a_compiled_model_gives_the_same(one_layer: Path) -> None:
    sections = {"model_optim": {"compile": True}}
    cfg = configuration(one_layer, sections=sections, compile_mode="default")
    reference = Reference(one_layer)
    with loaded(cfg) as model:
        assert model._engine.batching == "continuous"
        texts = PROMPTS[:6]
        found = await asyncio.gather(*(model.infer(inputs(text)) for text in texts))
    assert [answer["text"] for answer in found] == [reference.text(text) for text in texts]


def test_chat_and_completions_over_http(llama: Path, reference: Reference) -> None:
    with client_of(configuration(llama)) as client:
        messages: Any = [{"role": "user", "content": "tell me more"}]
        prompt = reference.tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        chat = client.chat.completions.create(
            model="tiny", messages=messages, max_tokens=12, temperature=0
        )
        expected = reference.text(prompt, max_new_tokens=12)
        assert chat.choices[0].message.content == expected
        assert chat.choices[0].finish_reason == "length"
        assert chat.usage is not None
        assert chat.usage.completion_tokens == 12
        assert chat.usage.prompt_tokens == len(reference.tokenizer.encode(prompt))
        stream = client.chat.completions.create(
            model="tiny",
            messages=messages,
            max_tokens=12,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = list(stream)
        deltas = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(deltas) == expected
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 12
        card = client.models.retrieve("tiny").model_dump()
        assert card["acceleration"] == {
            "device": "cpu",
            "dtype": "float32",
            "attention": "sdpa",
            "quantization": None,
            "compile": False,
            "batching": "continuous",
        }
        with pytest.raises(openai.BadRequestError, match="context length is 4096 tokens"):
            client.completions.create(model="tiny", prompt="word " * 5000)


def test_a_text_that_begins_like_its_prompt_is_not_cut(llama: Path, reference: Reference) -> None:
    first = reference.text("hello", max_new_tokens=1)
    prompt = next(p for p in (first[:1], first[:2]) if p)
    with client_of(configuration(llama)) as client:
        answer = client.completions.create(
            model="tiny", prompt=prompt, max_tokens=20, temperature=0
        )
        assert answer.choices[0].text == reference.text(prompt, max_new_tokens=20)


PROGRAM = """
import sys
from truthgpt_serve import build_model

if __name__ == "__main__":
    model = build_model("hf-transformers", {
        "task": "text-generation",
        "model": {"name_or_path": sys.argv[1]},
        "hardware": {"gpus": 0, "cpus": 1},
        "model_optim": {"dtype": "float32"},
    })
    print(len(model.infer({"text": "Hello", "max_new_tokens": 4})["text"]))
    stream = model.stream({"text": "Hello", "max_new_tokens": 500})
    print(len(next(stream)))
"""


@pytest.mark.long("loads a model in a process of its own")
def test_a_program_that_leaves_the_model_open_ends(llama: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    done = subprocess.run(
        [sys.executable, program, llama], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr  # not by "terminate called"
    assert len(done.stdout.splitlines()) == 2
