"""Chats with function calls: what is learned is what the chat template renders, or a refusal."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
import trl
from transformers import AutoTokenizer
from trl.data_utils import apply_chat_template

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.training_runs import job_of, run, sections_of, write_rows
from truthgpt_serve.training.data import BadRow, Row
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.events import read_events
from truthgpt_serve.training.text.makers import ExampleMaker
from truthgpt_serve.training.text.prepare import prepare, train_table
from truthgpt_serve.training.text.samples import SampleReader

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Says the weather.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALL = {"id": "call00001", "type": "function", "function": {"name": "get_weather"}}


def call(arguments: Any) -> dict[str, Any]:
    return {**CALL, "function": {"name": "get_weather", "arguments": arguments}}


def chat(content: Any = None, arguments: Any = '{"city": "Paris"}', **more: Any) -> list[Any]:
    """Returns a chat in OpenAI's form."""
    asked = {"role": "assistant", "content": content, "tool_calls": [call(arguments)], **more}
    return [
        {"role": "user", "content": "Weather in Paris?"},
        asked,
        {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": "Sunny."},
        {"role": "assistant", "content": "It is sunny."},
    ]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture
def tokenizer(model: Path) -> Any:
    return AutoTokenizer.from_pretrained(model)


def maker(
    tokenizer: Any, method: str = "sft", loss_on: str = "assistant", **data: Any
) -> Callable[[Any], Any]:
    """Returns what makes the one example of a row."""
    section = {"max_seq_len": 4096, "pack": False, **data}
    cfg = {"data": section, "training": {"method": method, "loss_on": loss_on}}
    make = ExampleMaker(cfg, tokenizer, SampleReader(cfg, tokenizer))

    def one(values: Any) -> Any:
        (example,) = make(Row(values, "here"))
        return example

    return one


def rendered(tokenizer: Any, messages: list[Any], **more: Any) -> list[int]:
    """Returns what transformers makes of a chat whose arguments are an object."""
    messages = copy.deepcopy(messages)
    for message in messages:
        message.pop("weight", None)
        message["content"] = message["content"] or ""
        for one in message.get("tool_calls", []):
            arguments = one["function"]["arguments"]
            if isinstance(arguments, str):
                one["function"]["arguments"] = json.loads(arguments)
    ids: list[int] = tokenizer.apply_chat_template(messages, return_dict=False, **more)
    return ids


@pytest.mark.parametrize("content", [None, "", "Let me look."])
@pytest.mark.parametrize("arguments", ['{"city": "Paris"}', {"city": "Paris"}])
def test_calls_and_tools_are_learned_as_the_template_renders_them(
    content: Any, arguments: Any, tokenizer: Any
) -> None:
    messages = chat(content, arguments)
    for tools in (None, TOOLS, json.dumps(TOOLS)):
        example = maker(tokenizer, loss_on="all")({"text": messages, "tools": tools})
        given = TOOLS if tools else None
        assert example["input_ids"] == rendered(tokenizer, messages, tools=given)
        assert example["labels"] == example["input_ids"]
        text = tokenizer.decode(example["input_ids"])
        assert '{"name": "get_weather", "arguments": {"city": "Paris"}}' in text
        assert ("Says the weather." in text) == bool(tools)
        assert "Sunny." in text


def test_a_chat_without_content_and_calls_is_refused(tokenizer: Any) -> None:
    messages = chat()
    del messages[1]["tool_calls"]
    with pytest.raises(BadRow, match=r"'text'\[1\].content must be text, found nothing"):
        maker(tokenizer)({"text": messages})


BAD = [
    (lambda m: m[1].update(tool_calls={}), r"\[1\].tool_calls must be a list, found an object"),
    (lambda m: m[1].update(tool_calls=["x"]), r"tool_calls\[0\] must be an object, found text"),
    (lambda m: m[1].update(tool_calls=[{"function": 1}]), "function must be an object"),
    (lambda m: m[1].update(tool_calls=[{"function": {}}]), "has no 'name' column"),
    (lambda m: m[1].update(tool_calls=[call("{")]), "arguments is not JSON"),
    (lambda m: m[1].update(tool_calls=[call("[1]")]), "arguments must be an object, found a list"),
    (lambda m: m[1].update(tool_calls=[call('{"x": "\\ud83d"}')]), "surrogate"),
    (
        lambda m: m[1].update(tool_calls=[{**call("{}"), "type": "custom"}]),
        "type must be 'function'",
    ),
    (lambda m: m[0].update(tool_calls=[call("{}")]), "is for messages of the assistant"),
    (lambda m: m[1].update(function_call={"name": "x"}), "function_call is not supported"),
    (lambda m: m[1].update(weight=0.5), "weight must be 0 or 1"),
    (lambda m: m[1].update(weight="0"), "weight must be 0 or 1"),
    (lambda m: m[0].update(weight=0), r"\[0\].weight is for messages of the assistant"),
    (lambda m: m[0].update(content=[{"type": "image_url", "image_url": {}}]), "a text part, found"),
    (lambda m: m[0].update(content=[{"type": "text"}]), r"content\[0\].text must be text"),
]


@pytest.mark.parametrize(("change", "problem"), BAD)
def test_calls_that_are_none_are_bad_rows(change: Any, problem: str, tokenizer: Any) -> None:
    messages = chat()
    change(messages)
    with pytest.raises(BadRow, match=problem):
        maker(tokenizer)({"text": messages})


@pytest.mark.parametrize("tools", [7, "{", "7", [1], [{"type": "function"}], {"a": 1}])
def test_tools_that_are_none_are_bad_rows(tools: Any, tokenizer: Any) -> None:
    with pytest.raises(BadRow, match="'tools'"):
        maker(tokenizer)({"text": chat(), "tools": tools})


STORY = (
    "{% for m in messages %}{% if m.role in ('user', 'assistant') %}{{ m.content }}{% endif %}"
    "{% endfor %}"
)
PLAIN = "{% for m in messages %}{{ m.role + m.content }}{% endfor %}"
ONE_CALL = (
    "{{ tools }}{% for m in messages %}{{ m.role + m.content }}"
    "{% if m.tool_calls %}{{ m.tool_calls[0] }}{% endif %}{% endfor %}"
)
TWICE = chat()
TWICE[1]["tool_calls"] = [call("{}"), call("{}")]


@pytest.mark.parametrize(
    ("template", "row", "missing"),
    [
        (PLAIN, {"text": chat()}, r"'text'\[1\].tool_calls\[0\]"),
        (PLAIN, {"text": chat()[:1], "tools": TOOLS}, "the column 'tools'"),
        (STORY, {"text": [{"role": "system", "content": "Be kind."}]}, r"\(role 'system'\)"),
        (STORY, {"text": [*chat()[:1], *chat()[2:]]}, r"'text'\[1\].content \(role 'tool'\)"),
        (ONE_CALL, {"text": TWICE}, r"'text'\[1\].tool_calls\[1\]"),
    ],
)
def test_what_the_template_leaves_out_is_refused_by_name(
    template: str, row: Any, missing: str, tokenizer: Any
) -> None:
    tokenizer.chat_template = template
    make = maker(tokenizer, loss_on="all")
    for _ in range(2):  # remembered, too
        with pytest.raises(BadRow, match=f"leaves out .*{missing}"):
            make(row)
    assert make({"text": [{"role": "user", "content": "Hi"}]})["input_ids"]


def test_parts_are_rendered_or_joined_and_never_lost(tokenizer: Any) -> None:
    parts = [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}]
    row = {"text": [{"role": "user", "content": parts}]}
    ids = maker(tokenizer, loss_on="all")(row)["input_ids"]
    joined = [{"role": "user", "content": "One.\nTwo."}]
    assert ids == rendered(tokenizer, joined)
    tokenizer.chat_template = (
        "{% for m in messages %}{% for part in m.content %}<{{ part.text }}>{% endfor %}"
        "{% endfor %}"
    )
    ids = maker(tokenizer, loss_on="all")(row)["input_ids"]
    assert tokenizer.decode(ids) == "<One.><Two.>"


def test_arguments_are_text_where_the_template_takes_no_object(tokenizer: Any) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls or [] %}"
        "{{ c.function.name + c.function.arguments }}{% endfor %}{% endfor %}"
    )
    ids = maker(tokenizer)({"text": chat(arguments={"city": "Zürich"})})
    assert 'get_weather{"city": "Zürich"}' in tokenizer.decode(ids["input_ids"])


def test_messages_of_weight_0_are_read_and_not_learned(tokenizer: Any) -> None:
    messages = chat("I guess.", weight=0)
    example = maker(tokenizer, loss_on="all")({"text": messages})
    assert example["input_ids"] == rendered(tokenizer, messages)
    start = len(rendered(tokenizer, messages[:1], add_generation_prompt=True))
    end = len(rendered(tokenizer, messages[:2]))
    labels = list(example["input_ids"])
    labels[start:end] = [-100] * (end - start)
    assert example["labels"] == labels
    hidden = tokenizer.decode(
        [i for i, label in zip(example["input_ids"], labels, strict=True) if label == -100]
    )
    assert "I guess." in hidden
    assert "get_weather" in hidden
    assert "sunny" not in hidden
    learned = maker(tokenizer, loss_on="all")({"text": chat("I guess.", weight=1)})
    assert learned["labels"] == learned["input_ids"] == example["input_ids"]
    answers = maker(tokenizer)({"text": messages})
    text = tokenizer.decode([label for label in answers["labels"] if label != -100])
    assert text == "It is sunny.<|im_end|>\n"


def test_a_row_of_which_nothing_would_be_learned_is_bad(tokenizer: Any) -> None:
    messages = [{"role": "assistant", "content": "x", "weight": 0}]
    with pytest.raises(BadRow, match="each message there has weight 0"):
        maker(tokenizer)({"text": messages})


def test_packed_rows_keep_what_is_not_learned(model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", [{"text": chat("I guess.", weight=0)}] * 9)
    job = job_of(tmp_path / "run", sections_of(model, data, data={"pack": True}))
    prepare(job)
    labels = [label for row in train_table(job) for label in row["labels"]]
    ids = [token for row in train_table(job) for token in row["input_ids"]]
    assert 0 < labels.count(-100) < len(labels) == len(ids)
    assert all(label in (-100, token) for label, token in zip(labels, ids, strict=True))


def test_answers_to_a_prompt_may_be_calls(tokenizer: Any) -> None:
    messages = chat()
    fields = {"prompt_field": "q", "completion_field": "a"}
    row = {"q": messages[:1], "a": messages[1:], "tools": TOOLS}
    example = maker(tokenizer, **fields)(row)
    assert example["input_ids"] == rendered(tokenizer, messages, tools=TOOLS)
    learned = tokenizer.decode([label for label in example["labels"] if label != -100])
    assert "get_weather" in learned
    assert "Sunny." not in learned
    assert learned.endswith("It is sunny.<|im_end|>\n")


TEMPLATES = sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja"))


def test_templates_of_known_models_render_all_of_it_or_are_refused(tokenizer: Any) -> None:
    taken, refused = set(), {}
    for file in TEMPLATES:
        tokenizer.chat_template = file.read_text(encoding="utf-8")
        try:
            example = maker(tokenizer, loss_on="all")({"text": chat(), "tools": TOOLS})
        except BadRow as error:
            refused[file.stem] = str(error)
            continue
        taken.add(file.stem)
        assert example["input_ids"] == rendered(tokenizer, chat(), tools=TOOLS), file
        text = tokenizer.decode(example["input_ids"])
        for part in ("Weather in Paris?", "Says the weather.", "Sunny.", "It is sunny."):
            assert part in text, file
        assert text.count("get_weather") >= 2, file
    assert {"qwen2_5", "qwen3", "llama3_2"} <= taken, refused
    assert all("chat template" in problem for problem in refused.values())


def test_pairs_are_rendered_as_trl_does(tokenizer: Any) -> None:
    messages = chat()
    row = {"prompt": messages[:1], "chosen": messages[1:2], "rejected": "No idea.", "tools": TOOLS}
    example = maker(tokenizer, "dpo")(row)
    ours = apply_chat_template(
        {name: example[name] for name in ("prompt", "chosen", "rejected")}, tokenizer, tools=TOOLS
    )
    asked = chat("", {"city": "Paris"})
    theirs = apply_chat_template(
        {
            "prompt": asked[:1],
            "chosen": asked[1:2],
            "rejected": [{"role": "assistant", "content": "No idea."}],
        },
        tokenizer,
        tools=TOOLS,
    )
    assert ours == theirs
    assert "get_weather" in ours["chosen"]
    with pytest.raises(BadRow, match="'chosen' has weight 0"):
        maker(tokenizer, "dpo")({**row, "chosen": chat(weight=0)[1:2]})


def test_dpo_learns_calls(model: Path, tmp_path: Path) -> None:
    row = {"prompt": chat()[:1], "chosen": chat()[1:2], "rejected": "No.", "tools": TOOLS}
    plain = {"prompt": chat()[:1], "chosen": "Yes.", "rejected": "No."}
    data = write_rows(tmp_path / "pairs.jsonl", [row, plain] * 8)
    given: dict[str, Any] = {"training": {"method": "dpo"}, "data": {"max_seq_len": 256}}
    found = run(job_of(tmp_path / "run", sections_of(model, data, **given)))
    assert found[0] == pytest.approx(0.6931, abs=1e-3)
    assert found[-1] < found[0]


def test_grpo_shows_the_tools_of_each_row(model: Path, tmp_path: Path) -> None:
    named: list[Any] = copy.deepcopy(TOOLS)
    named[0]["function"]["description"] = "x " * 40
    rows = [{"prompt": chat()[:1], "tools": TOOLS}, {"prompt": chat()[:1], "tools": named},
            {"prompt": chat()[:1]}]  # fmt: skip
    data = write_rows(tmp_path / "prompts.jsonl", rows * 2)
    training = {
        "method": "grpo", "reward": "tests.support.training_rewards:counts_words",
        "num_generations": 2, "max_new_tokens": 2, "train_batch_size": 2, "grad_accum_steps": 1,
    }  # fmt: skip
    job = job_of(tmp_path / "run", sections_of(model, data, training=training))
    run(job)
    tokenizer = AutoTokenizer.from_pretrained(model)
    expected = [len(rendered(tokenizer, row["prompt"], tools=row.get("tools"))) for row in rows]
    assert max(expected) > min(expected) + 50
    # A step reads one prompt twice, with two answers of one or two tokens.
    read = [
        event["num_units"] // 2 for event in read_events(job.folder) if event["event"] == "step"
    ]
    generation = len(tokenizer("<|im_start|>assistant\n").input_ids)
    found = sorted({number - generation for number in read})
    assert len(read) == 6
    assert all(any(0 < number - length <= 4 for length in expected) for number in found), (
        found,
        expected,
    )
    assert all(any(0 < number - length <= 4 for number in found) for length in expected)


def test_prompts_of_grpo_keep_their_tools(tokenizer: Any) -> None:
    row = {"prompt": chat()[:3], "tools": json.dumps(TOOLS), "answer": 1}
    example = maker(tokenizer, "grpo")(row)
    assert example["tools"] == TOOLS
    assert example["answer"] == 1
    assert example["prompt"][1]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}
    tokenizer.chat_template = PLAIN
    with pytest.raises(BadRow, match="leaves out"):
        maker(tokenizer, "grpo")(row)


def test_keys_that_a_table_fills_with_nulls_are_none(
    model: Path, tokenizer: Any, tmp_path: Path
) -> None:
    messages = chat(arguments={"city": "Paris"})
    other = chat(arguments={"town": {"name": "Rome"}})
    file = tmp_path / "a.parquet"
    parquet.write_table(arrow.Table.from_pylist([{"text": messages}, {"text": other}]), file)
    given = sections_of(model, file, data={"max_seq_len": 256})
    job = job_of(tmp_path / "run", given)
    prepare(job)
    assert [row["input_ids"] for row in train_table(job)] == [
        rendered(tokenizer, messages),
        rendered(tokenizer, other),
    ]


def test_the_shipped_story_model_refuses_calls_by_name(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", [{"text": chat()}])
    job = job_of(tmp_path / "run", sections_of(Path("models/story").absolute(), data))
    with pytest.raises(TrainingError, match=r"a\.jsonl:1: the model's chat template leaves out"):
        prepare(job)
