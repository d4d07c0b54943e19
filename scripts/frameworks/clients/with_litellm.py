"""LiteLLM: its SDK, and its proxy as OpenAI's and Anthropic's clients see it."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Literal

import anthropic
import litellm
import openai
from pydantic import BaseModel
from report import BASE_URL, MODEL, PROMPT, ROOT_URL, check, run

KEY = "sk-of-the-proxy"
USER = [{"role": "user", "content": PROMPT}]
OPTIONS = {"model": f"openai/{MODEL}", "api_base": BASE_URL, "api_key": "none", "num_retries": 0}


class Story(BaseModel):
    """What a story is of."""

    hero: Literal["Mia", "Tom"]
    thing: Literal["boat", "kite"]


TOOLS = [
    {
        "type": "function",
        "function": {"name": "tell", "parameters": Story.model_json_schema()},
    }
]


@check("chat")
def _() -> None:
    answer = litellm.completion(**OPTIONS, messages=USER, max_tokens=20)
    assert answer.choices[0].message.content
    assert answer.usage.completion_tokens > 0


@check("chat, streamed")
async def _() -> None:
    stream = await litellm.acompletion(
        **OPTIONS, messages=USER, max_tokens=20, stream=True,
        stream_options={"include_usage": True},
    )  # fmt: skip
    chunks = [chunk async for chunk in stream]
    whole = litellm.stream_chunk_builder(chunks, messages=USER)
    assert whole.choices[0].message.content


@check("completion")
def _() -> None:
    options = {**OPTIONS, "model": f"text-completion-openai/{MODEL}"}
    assert litellm.text_completion(**options, prompt="Once", max_tokens=6).choices[0].text


@check("structured output", "json")
def _() -> None:
    litellm.enable_json_schema_validation = True
    answer = litellm.completion(**OPTIONS, messages=USER, response_format=Story)
    Story.model_validate_json(answer.choices[0].message.content)


@check("tools, required", "json")
def _() -> None:
    answer = litellm.completion(**OPTIONS, messages=USER, tools=TOOLS, tool_choice="required")
    (call, *_) = answer.choices[0].message.tool_calls or ()
    Story.model_validate_json(call.function.arguments)


@check("responses")
def _() -> None:
    assert litellm.responses(**OPTIONS, input=PROMPT, max_output_tokens=20).output


@check("Anthropic")
def _() -> None:
    options = {**OPTIONS, "model": f"anthropic/{MODEL}", "api_base": ROOT_URL}
    answer = litellm.completion(**options, messages=USER, max_tokens=20)
    assert answer.choices[0].message.content


@check("Anthropic, tools, required", "json")
def _() -> None:
    options = {**OPTIONS, "model": f"anthropic/{MODEL}", "api_base": ROOT_URL}
    answer = litellm.completion(
        **options, messages=USER, max_tokens=1000, tools=TOOLS, tool_choice="required"
    )
    (call, *_) = answer.choices[0].message.tool_calls or ()
    Story.model_validate_json(call.function.arguments)


class Proxy:
    """LiteLLM's proxy in front of the model, on a port of its own."""

    def __init__(self) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.url = f"http://127.0.0.1:{free.getsockname()[1]}"
        folder = Path(tempfile.mkdtemp())
        served = {"model_name": "story", "litellm_params": OPTIONS}
        (folder / "config.yaml").write_text(
            json.dumps({"model_list": [served], "general_settings": {"master_key": KEY}})
        )
        program = str(Path(sys.executable).with_name("litellm"))
        port = self.url.rpartition(":")[2]
        command = [program, "--config", "config.yaml", "--host", "127.0.0.1", "--port", port]
        self.process = subprocess.Popen(command, cwd=folder, env=dict(os.environ))
        self.folder = folder

    def wait(self) -> None:
        """Waits until it answers."""
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline and self.process.poll() is None:
            try:
                with urllib.request.urlopen(f"{self.url}/health/liveliness", timeout=5):
                    return
            except OSError:
                time.sleep(0.5)
        raise RuntimeError("the proxy does not answer")

    def close(self) -> None:
        """Ends it."""
        self.process.terminate()
        self.process.wait(30)


proxy = Proxy()


@check("proxy, chat")
def _() -> None:
    proxy.wait()
    client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=KEY, max_retries=0)
    answer = client.chat.completions.create(model="story", messages=USER, max_tokens=20)
    assert answer.choices[0].message.content


@check("proxy, chat, streamed")
def _() -> None:
    client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=KEY, max_retries=0)
    stream = client.chat.completions.create(
        model="story", messages=USER, max_tokens=20, stream=True
    )
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


@check("proxy, tools, required", "json")
def _() -> None:
    client = openai.OpenAI(base_url=f"{proxy.url}/v1", api_key=KEY, max_retries=0)
    answer = client.chat.completions.create(
        model="story", messages=USER, tools=TOOLS, tool_choice="required"
    )
    assert answer.choices[0].message.tool_calls


@check("proxy, Anthropic")
def _() -> None:
    client = anthropic.Anthropic(base_url=proxy.url, api_key=KEY, max_retries=0)
    answer = client.messages.create(model="story", messages=USER, max_tokens=20)
    assert answer.content[0].text


try:
    run()
finally:
    proxy.close()
