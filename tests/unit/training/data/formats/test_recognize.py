"""What is recognized of a row's columns, and what becomes of the row."""

from __future__ import annotations

import json
from typing import Any

import pytest
import trl

from truthgpt_serve.training.data import BadRow, Row
from truthgpt_serve.training.data.formats import recognize
from truthgpt_serve.training.data.formats.implicit import extract_prompt
from truthgpt_serve.training.errors import TrainingError

Q = {"role": "user", "content": "Q"}
A = {"role": "assistant", "content": "A"}
B = {"role": "assistant", "content": "B"}
SYSTEM = {"role": "system", "content": "S"}
HUMAN, GPT = {"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}
CALL = {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'}
SEEN = {"from": "observation", "value": "seen"}
TOOLS = [{"name": "f"}]


def read(
    values: Any, method: str = "sft", *, has_template: bool = True, **data: Any
) -> tuple[str, list[Any]]:
    """Returns the recognized format and the values of the samples."""
    row = Row(values, "here")
    layout = recognize(row, data, method, has_template=has_template)
    return layout.format.name, [sample.values for sample in layout.samples(row)]


CHAT = {"messages": [Q, A]}
SFT: list[tuple[Any, str, Any]] = [
    ({"text": "a"}, "text", {"text": "a"}),
    ({"story": "a"}, "text", {"text": "a"}),
    ({"messages": [Q, A], "id": 1}, "messages", CHAT),
    ({"messages": json.dumps([Q, A])}, "messages", CHAT),
    ({"text": [Q, A]}, "messages", CHAT),
    ({"conversations": [Q, A]}, "messages", CHAT),
    ({"conversations": [HUMAN, GPT]}, "sharegpt", CHAT),
    ({"conversation": json.dumps([HUMAN, GPT])}, "sharegpt", CHAT),
    ({"conversations": [HUMAN, GPT], "system": "S"}, "sharegpt", {"messages": [SYSTEM, Q, A]}),
    ({"instruction": "Q", "input": "", "output": "A"}, "alpaca", CHAT),
    ({"question": "Q", "answer": "A"}, "alpaca", CHAT),
    (
        {"instruction": "I", "input": "x", "output": "A", "history": [["Q", "A"]], "system": "S"},
        "alpaca",
        {"messages": [SYSTEM, Q, A, {"role": "user", "content": "I\nx"}, A]},
    ),
    ({"prompt": "Q", "completion": "A"}, "prompt-completion", {"prompt": "Q", "completion": "A"}),
    ({"prompt": [Q], "completion": [A]}, "prompt-completion", {"prompt": [Q], "completion": [A]}),
    ({"messages": None, "text": "a"}, "text", {"text": "a"}),
]  # fmt: skip
PAIR = {"prompt": [Q], "chosen": [A], "rejected": [B]}
PAIRS: list[tuple[Any, Any]] = [
    ({"prompt": "Q", "chosen": "A", "rejected": "B"},) * 2,
    ({"chosen": [Q, A], "rejected": [Q, B]}, PAIR),
    ({"prompt": "Q", "chosen": [Q, A], "rejected": [Q, B], "score_chosen": 1.0}, PAIR),
    ({"prompt": "Q", "chosen": [A], "rejected": [B]}, PAIR),
    ({"prompt": [Q], "chosen": [Q, A], "rejected": [Q, B]}, PAIR),
    ({"prompt": [Q], "chosen": [A], "rejected": [B]}, PAIR),
    ({"conversations": [HUMAN], "chosen": GPT, "rejected": {"from": "gpt", "value": "B"}}, PAIR),
    ({"question": "Q", "chosen": "A", "rejected": "B"}, {**PAIR, "chosen": "A", "rejected": "B"}),
    (
        {"input": {"messages": [Q], "tools": TOOLS}, "preferred_output": [A],
         "non_preferred_output": [B]},
        {**PAIR, "tools": TOOLS},
    ),
    ({"chosen": "Q: A", "rejected": "Q: B"}, {"prompt": "Q:", "chosen": " A", "rejected": " B"}),
]  # fmt: skip
GOOD = {"prompt": [Q], "completion": [A], "label": True}
KTO: list[tuple[Any, list[Any]]] = [
    (
        {"prompt": "Q", "completion": "A", "label": "False"},
        [{"prompt": "Q", "completion": "A", "label": False}],
    ),
    ({"conversations": [HUMAN, GPT], "kto_tag": True}, [GOOD]),
    ({"instruction": "Q", "output": "A", "label": 1}, [GOOD]),
    ({"chosen": [Q, A], "rejected": [Q, B]}, [GOOD, {**GOOD, "completion": [B], "label": False}]),
]  # fmt: skip
OTHERS: list[tuple[str, Any, Any]] = [
    ("grpo", {"question": "Q", "answer": 4}, {"prompt": [Q], "answer": 4}),
    ("grpo", {"prompt": "Q", "answer": 4}, {"prompt": "Q", "answer": 4}),
    ("grpo", {"messages": [Q], "answer": 4}, {"prompt": [Q], "answer": 4}),
    ("embedding", {"query": "a", "positive": "b"}, {"anchor": "a", "positive": "b"}),
    ("embedding", {"sentence1": "a", "sentence2": "b", "label": 0.5},
     {"sentence1": "a", "sentence2": "b", "score": 0.5}),
    ("classification", {"sentence": "a", "label": 1}, {"text": "a", "label": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("row", "name", "expected"), SFT)
def test_texts_and_chats_are_recognized_by_their_columns(
    row: Any, name: str, expected: Any
) -> None:
    assert read(row) == (name, [expected])


@pytest.mark.parametrize(("row", "expected"), PAIRS)
def test_pairs_come_to_one_form(row: Any, expected: Any) -> None:
    assert read(row, "dpo") == ("preference", [expected])


@pytest.mark.parametrize(("row", "expected"), KTO)
def test_labeled_answers_and_pairs_come_to_one_form(row: Any, expected: Any) -> None:
    assert read(row, "kto")[1] == expected


@pytest.mark.parametrize(("method", "row", "expected"), OTHERS)
def test_other_methods_have_forms_of_their_own(method: str, row: Any, expected: Any) -> None:
    assert read(row, method)[1] == [expected]


def test_calls_of_sharegpt_become_calls_with_ids() -> None:
    (found,) = read({"conversations": [HUMAN, CALL, SEEN, GPT]})[1]
    _, call, seen, _ = found["messages"]
    assert call["role"] == "assistant"
    assert call["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    assert (seen["role"], seen["name"]) == ("tool", "f")
    assert seen["tool_call_id"] == call["tool_calls"][0]["id"]


def test_alpaca_without_a_chat_template_has_stanfords_prompt() -> None:
    (found,) = read({"instruction": "Q", "output": "A"}, has_template=False)[1]
    assert found["prompt"].endswith("### Instruction:\nQ\n\n### Response:\n")
    with pytest.raises(BadRow, match="'system' needs a chat template"):
        read({"instruction": "Q", "output": "A", "system": "S"}, has_template=False)


def test_named_columns_win_over_recognition() -> None:
    row = {"messages": [Q, A], "story": "a", "q": "b", "a": "c"}
    assert read(row, text_field="story")[1] == [{"text": "a"}]
    found = read(row, prompt_field="q", completion_field="a")
    assert found == ("prompt-completion", [{"prompt": "b", "completion": "c"}])
    assert read(row, format="messages")[0] == "messages"


@pytest.mark.parametrize(
    ("row", "method", "data", "problem"),
    [
        ({"x": 1, "y": 2}, "sft", {}, "has the columns 'x', 'y'; sft needs .*data.text_field"),
        ({"x": 1, "y": 2}, "sft", {"format": "sharegpt"}, "data.format: sharegpt needs"),
        ({"x": 1}, "sft", {"text_field": "t"}, "has no 't' column .* which data.text_field names"),
        (
            {"conversations": [{"from": "human", "value": 1}]},
            "sft",
            {},
            r"\[0\].value must be text",
        ),
        ({"conversations": [{**CALL, "value": "f()"}]}, "sft", {}, "must be JSON of a function"),
        ({"chosen": [A], "rejected": [B]}, "dpo", {}, "share no first message"),
        ({"chosen": "A", "rejected": "B"}, "dpo", {}, "share no beginning"),
        ({"prompt": "a", "completion": "b", "label": "so"}, "kto", {}, "must be true or false"),
        ({"messages": [Q, A]}, "grpo", {}, "ends with an answer of the assistant"),
    ],
)
def test_what_does_not_fit_is_told_with_its_columns(
    row: Any, method: str, data: Any, problem: str
) -> None:
    with pytest.raises(BadRow, match=problem):
        read(row, method, **data)


def test_a_format_of_another_method_is_refused() -> None:
    with pytest.raises(TrainingError, match="format: alpaca is not for training"):
        read({"instruction": "a"}, "dpo", format="alpaca")


def test_columns_that_come_late_are_read_and_the_rest_is_named() -> None:
    layout = recognize(Row({"messages": [Q, A], "id": 1}, "a"), {}, "sft", has_template=True)
    (sample,) = layout.samples(Row({"messages": [Q, A], "tools": TOOLS, "url": ""}, "b"))
    assert sample.values["tools"] == TOOLS
    (line,) = layout.lines()
    assert line == "format   messages: recognized by the columns 'messages'; not read: 'url'"


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [([Q, A], [Q, B]), ([Q, A, Q, A], [Q, A]), ("a b c", "a b d"), ("a b", "a c"), ("ab", "ac")],
)
def test_implicit_prompts_are_those_of_trl(chosen: Any, rejected: Any) -> None:
    prompt, rest = extract_prompt(chosen, rejected)
    assert {"prompt": prompt, **rest} == trl.extract_prompt(
        {"chosen": chosen, "rejected": rejected}
    )
