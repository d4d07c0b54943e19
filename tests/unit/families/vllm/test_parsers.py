"""Which parsers of vLLM's fit a chat template, found with vLLM's own tokenizers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.reasoning import ReasoningParserManager
from vllm.tokenizers import get_tokenizer

from deployments.vllm.parsers import choose_parsers
from deployments.vllm.tiny_model import make_tiny_llama
from truthgpt_serve.config import load_model_config

CHAT = """{%- for message in messages %}{{- message.role + message.content }}{%- endfor %}"""
THINKS = CHAT + "{%- if add_generation_prompt %}{{- 'assistant<think>\\n' }}{%- endif %}"
MAY_THINK = (
    CHAT
    + """{%- if add_generation_prompt %}{{- 'assistant' }}
{%- if enable_thinking is defined and not enable_thinking %}{{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}{%- endif %}"""
)
SWITCHED = MAY_THINK.replace(
    "{%- endif %}{%- endif %}", "{%- else %}{{- '<think>\\n' }}{%- endif %}{%- endif %}"
)

SHOWS = CHAT.replace("message.content", "(message.reasoning_content or '') + message.content")
TOOLS = "{%- if tools %}{{- tools | tojson }}{%- endif %}"
CALLS = """{%%- for message in messages %%}{%%- for call in message.tool_calls or [] %%}
{{- %s }}{%%- endfor %%}{{- message.content or '' }}{%%- endfor %%}"""
ARGUMENTS = "call.function.arguments | tojson"
LLAMA = f"""'{{"name": "' + call.function.name + '", "parameters": ' + ({ARGUMENTS}) + '}}'"""
MISTRAL = f"'[TOOL_CALLS]' + call.function.name + '[ARGS]' + ({ARGUMENTS})"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama, whose vocabulary has tokens for thoughts too."""
    import transformers

    folder = make_tiny_llama(tmp_path_factory.mktemp("made"))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["<think>", "</think>", "<seed:think>", "</seed:think>"])
    tokenizer.add_tokens(["<|channel>", "<channel|>"])
    tokenizer.save_pretrained(folder)
    return folder


def choose(weights: Path, *, task: str = "text-generation", **engine: Any) -> dict[str, Any]:
    keys = {
        "task": task,
        "model": {"family": "vllm", "name_or_path": str(weights)},
        "serving": {"engine": engine},
    }
    return choose_parsers(load_model_config(keys).to_cfg())


def test_the_parser_of_the_models_own_template(weights: Path) -> None:
    assert choose(weights) == {"tool_call_parser": "hermes", "enable_auto_tool_choice": True}


def test_what_the_configuration_says_counts(weights: Path) -> None:
    assert choose(weights, enable_auto_tool_choice=False) == {}
    assert choose(weights, tool_call_parser="mistral", enable_auto_tool_choice=True) == {}
    assert choose(weights, task="embedding") == {}
    assert choose(weights, chat_template=THINKS, reasoning_parser="") == {}


@pytest.mark.parametrize(
    ("template", "parser"),
    [(THINKS, "deepseek_r1"), (MAY_THINK, "qwen3"), (SWITCHED, "qwen3"), (CHAT, None)],
)
def test_the_parser_of_reasoning(weights: Path, template: str, parser: str | None) -> None:
    expected = {} if parser is None else {"reasoning_parser": parser}
    assert choose(weights, chat_template=template) == expected


def test_an_answer_without_thoughts_is_none_of_them(weights: Path) -> None:
    name = choose(weights, chat_template=SWITCHED)["reasoning_parser"]
    tokenizer = get_tokenizer(str(weights))
    request = ChatCompletionRequest(model="m", messages=[{"role": "user", "content": "Hi"}])
    for is_on, text in ((True, "Hm.</think>Yes."), (False, "Yes.")):
        told = {"enable_thinking": is_on}
        parser = ReasoningParserManager.get_reasoning_parser(name)(
            tokenizer, chat_template_kwargs=told
        )
        found = parser.extract_reasoning(text, request)
        assert found == ("Hm." if is_on else None, "Yes.")


def test_a_vocabulary_without_the_tokens_has_no_reasoning(tmp_path: Path) -> None:
    assert choose(make_tiny_llama(tmp_path / "plain"), chat_template=THINKS) == {}


def test_a_model_that_cannot_be_read_is_left_to_the_engine(tmp_path: Path) -> None:
    assert choose(tmp_path) == {}


@pytest.mark.parametrize(
    ("call", "parser", "token"),
    [(LLAMA, "llama3_json", "<|python_tag|>"), (MISTRAL, "mistral", "[TOOL_CALLS]")],
)
def test_a_parser_is_chosen_only_where_vllm_can_build_it(
    call: str, parser: str, token: str, tmp_path: Path
) -> None:
    import transformers
    from vllm.tool_parsers import ToolParserManager

    folder, template = make_tiny_llama(tmp_path / "plain"), TOOLS + CALLS % call
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with pytest.raises(RuntimeError, match="token"):
        ToolParserManager.get_tool_parser(parser)(tokenizer)
    assert choose(folder, chat_template=template) == {}

    tokenizer.add_tokens([token])
    tokenizer.save_pretrained(folder)
    ToolParserManager.get_tool_parser(parser)(tokenizer)
    assert choose(folder, chat_template=template)["tool_call_parser"] == parser


@pytest.mark.parametrize(
    ("mark", "name"), [("<seed:think>", "seed_oss"), ("<|channel>thought\\n", "gemma4")]
)
def test_parsers_of_other_thoughts(weights: Path, mark: str, name: str) -> None:
    template = SHOWS.replace("{{- message.role", f"{{{{- '{mark}' + message.role")
    assert choose(weights, chat_template=template) == {"reasoning_parser": name}
    tokenizer = get_tokenizer(str(weights))
    parser = ReasoningParserManager.get_reasoning_parser(name)(tokenizer)
    text = mark.replace("\\n", "\n") + "Hm.</seed:think>Yes." if name == "seed_oss" else ""
    text = text or "<|channel>thought\nHm.<channel|>Yes."
    request = ChatCompletionRequest(model="m", messages=[{"role": "user", "content": "Hi"}])
    assert parser.extract_reasoning(text, request)[0] == "Hm."
