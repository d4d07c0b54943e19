"""Which tokens of chats are learned: as trl masks them, and by hand for other templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trl
from transformers import AutoTokenizer

from deployments.vllm.tiny_model import make_tiny_llama
from truthgpt_serve.training.data import BadRow, Row
from truthgpt_serve.training.text.makers import ExampleMaker
from truthgpt_serve.training.text.samples import SampleReader
from truthgpt_serve.training.text.shown import example_lines

KNOWN = Path(trl.__file__).parent / "chat_templates"
CHAT = [
    {"role": "user", "content": "One?"},
    {"role": "assistant", "content": "First."},
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "Second."},
]
CALLS = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
    },
    {"role": "tool", "content": "Sunny."},
    {"role": "assistant", "content": "It is sunny."},
]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture
def tokenizer(model: Path) -> Any:
    return AutoTokenizer.from_pretrained(model)


def made(tokenizer: Any, messages: Any, max_seq_len: int = 4096, **training: Any) -> Any:
    cfg = {
        "data": {"max_seq_len": max_seq_len, "pack": False},
        "training": {"method": "sft", "loss_on": "assistant", **training},
    }
    make = ExampleMaker(cfg, tokenizer, SampleReader(cfg, tokenizer))
    (example,) = make(Row({"messages": messages}, "here"))
    return example


def learned(tokenizer: Any, example: Any) -> str:
    return str(tokenizer.decode([label for label in example["labels"] if label != -100]))


@pytest.mark.parametrize("messages", [CHAT, CALLS], ids=["chat", "calls"])
@pytest.mark.parametrize("name", ["qwen2_5", "qwen3", "qwen2_5_training", "glm4moe"])
def test_what_is_learned_is_what_trl_learns(name: str, messages: Any, tokenizer: Any) -> None:
    tokenizer.chat_template = (KNOWN / f"{name}.jinja").read_text(encoding="utf-8")
    example = made(tokenizer, messages)
    variant = None if name.endswith("_training") else trl.get_training_chat_template(tokenizer)
    theirs = tokenizer.apply_chat_template(
        messages, chat_template=variant, return_dict=True, return_assistant_tokens_mask=True
    )
    assert example["input_ids"] == theirs["input_ids"]
    assert [label != -100 for label in example["labels"]] == list(
        map(bool, theirs["assistant_masks"])
    )


STORY = Path("models/story/chat_template.jinja").read_text(encoding="utf-8")
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% for c in m.tool_calls or [] %}<tool_call>{{ c.function | tojson }}</tool_call>{% endfor %}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA = (
    "{{ bos_token }}{% for m in messages %}<|h|>{{ m.role }}<|/h|>\n\n{{ m.content | trim }}"
    "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}<|eot|>{% endfor %}"
    "{% if add_generation_prompt %}<|h|>assistant<|/h|>\n\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}[INST] {{ m.content }}[/INST]"
    "{% elif m.role == 'tool' %}[TOOL_RESULTS] {{ m.content }}[/TOOL_RESULTS]"
    "{% elif m.tool_calls %}[TOOL_CALLS] {% for c in m.tool_calls %}{{ c.function | tojson }}"
    "{% endfor %}{{ eos_token }}{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
CALL = '{"name": "f", "arguments": {"x": 1}}'
TABLE = [
    (STORY, CHAT, "First.<|im_end|>Second.<|im_end|>"),
    (CHATML, CHAT, "First.<|im_end|>\nSecond.<|im_end|>\n"),
    (
        CHATML,
        CALLS,
        f"<tool_call>{CALL}</tool_call><|im_end|>\nIt is sunny.<|im_end|>\n",
    ),
    (LLAMA, CHAT, "First.<|eot|>Second.<|eot|>"),
    (LLAMA, CALLS, f"{CALL}<|eot|>It is sunny.<|eot|>"),
    (MISTRAL, CHAT, " First.<|im_end|> Second.<|im_end|>"),
    (MISTRAL, CALLS, f"[TOOL_CALLS] {CALL}<|im_end|> It is sunny.<|im_end|>"),
]


@pytest.mark.parametrize(("template", "messages", "expected"), TABLE)
def test_every_turn_of_the_assistant_is_learned_and_nothing_else(
    template: str, messages: Any, expected: str, tokenizer: Any
) -> None:
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|h|>", "<|/h|>", "<|eot|>", "[INST]", "[/INST]"]}
    )
    tokenizer.chat_template = template
    assert learned(tokenizer, made(tokenizer, messages)) == expected
    # A question at the end is read, and takes nothing of the last answer.
    asked = [*messages, {"role": "user", "content": "And now?"}]
    assert learned(tokenizer, made(tokenizer, asked)) == expected
    whole = made(tokenizer, messages, loss_on="all")
    assert whole["labels"] == whole["input_ids"]


def test_beginnings_that_change_later_are_refused(tokenizer: Any) -> None:
    tokenizer.chat_template = "{{ messages | length }}" + CHATML
    with pytest.raises(BadRow, match="otherwise once others follow"):
        made(tokenizer, CHAT)


def test_the_plan_shows_what_is_learned(tokenizer: Any) -> None:
    tokenizer.chat_template = CHATML
    assert example_lines(made(tokenizer, CHAT[:2]), tokenizer)[1:] == [
        "  read  | <|im_start|>user",
        "  read  | One?<|im_end|>",
        "  read  | <|im_start|>assistant",
        "  learn | First.<|im_end|>",
    ]
    anything = {"prompt": [{"role": "user", "content": "Q"}], "chosen": 1.5, "rejected": [7]}
    assert example_lines(anything, tokenizer)[1:] == ["  prompt user| Q"]
