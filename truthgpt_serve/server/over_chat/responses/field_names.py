"""What the parts of a chat request are called in OpenAI's Responses API."""

from __future__ import annotations

TABLE = {
    "messages": "input",
    "prompt": "input",
    "max_tokens": "max_output_tokens",
    "max_completion_tokens": "max_output_tokens",
    "max_new_tokens": "max_output_tokens",
    "logprobs": "top_logprobs",
    "response_format": "text.format",
    "response_format.json_schema": "text.format",
    "tools[].function": "tools[]",
    "tool_choice.function": "tool_choice",
    "reasoning_effort": "reasoning.effort",
    "stream_options": "stream",
    "text.content": "",
    "turn.tool_calls": "",
    "turn.reasoning_content": ".content",
    "result.content": ".output",
    "result.tool_call_id": ".call_id",
    "image.image_url": ".image_url",
    "'image_url'": "'input_image'",
    "image.image_url.url": ".image_url",
    "image.image_url.detail": ".detail",
    "call.id": ".call_id",
    "call.function": "",
}
