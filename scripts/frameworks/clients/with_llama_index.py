"""LlamaIndex' model for OpenAI-like servers."""

from typing import Literal

from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel
from report import BASE_URL, MODEL, PROMPT, check, run

OPTIONS = {
    "model": MODEL,
    "api_base": BASE_URL,
    "api_key": "none",
    "max_retries": 0,
    "max_tokens": 800,
    "context_window": 8192,
}
chat = OpenAILike(**OPTIONS, is_chat_model=True, is_function_calling_model=True)
plain = OpenAILike(**OPTIONS, is_chat_model=False)
structured = OpenAILike(**OPTIONS, is_chat_model=True, should_use_structured_outputs=True)


class Thing(BaseModel):
    """A thing with a color."""

    name: Literal["boat", "kite"]
    color: Literal["red", "blue"]


def paint(color: Literal["red", "blue"]) -> str:
    """Paints the boat."""
    return f"painted {color}"


def sail(to: Literal["island", "harbor"]) -> str:
    """Sails the boat."""
    return f"sailed to the {to}"


TOOLS = [FunctionTool.from_defaults(paint), FunctionTool.from_defaults(sail)]


@check("completion")
def _() -> None:
    assert plain.complete("Once upon a time").text


@check("completion, streamed")
def _() -> None:
    assert list(plain.stream_complete("Once upon a time"))[-1].text


@check("chat")
def _() -> None:
    messages = [ChatMessage("Be brief.", role="system"), ChatMessage(PROMPT)]
    assert chat.chat(messages).message.content


@check("chat, streamed")
async def _() -> None:
    stream = await chat.astream_chat([ChatMessage(PROMPT)])
    assert [piece async for piece in stream][-1].message.content


@check("tools, required", "json")
def _() -> None:
    answer = chat.chat_with_tools(TOOLS, user_msg=PROMPT, tool_required=True)
    (call, *_) = chat.get_tool_calls_from_response(answer)
    assert call.tool_name in ("paint", "sail")


@check("tools, auto", "tools")
def _() -> None:
    answer = chat.predict_and_call(TOOLS, user_msg=PROMPT, error_on_no_tool_call=False)
    assert answer is not None


@check("structured output, by a tool", "json")
def _() -> None:
    prompt = PromptTemplate(PROMPT)
    answer = chat.structured_predict(Thing, prompt, llm_kwargs={"tool_required": True})
    assert isinstance(answer, Thing)


@check("structured output, by a schema", "json")
def _() -> None:
    assert isinstance(structured.structured_predict(Thing, PromptTemplate(PROMPT)), Thing)


run()
