"""What the parts of a chat request are called in Anthropic's Messages API."""

from __future__ import annotations

TABLE = {
    "max_completion_tokens": "max_tokens",
    "max_new_tokens": "max_tokens",
    "stop": "stop_sequences",
    "response_format": "output_config.format",
    "response_format.json_schema": "output_config.format",
    "tools[].function": "tools[]",
    "tools[].function.parameters": "tools[].input_schema",
    "tool_choice.function": "tool_choice",
    "parallel_tool_calls": "tool_choice.disable_parallel_tool_use",
    "prompt": "messages",
    "thinking_token_budget": "thinking.budget_tokens",
    "continue_final_message": "messages",
    "add_generation_prompt": "messages",
    "stream_options": "stream",
    "system.content": "",
    "turn.tool_calls": ".content",
    "turn.reasoning_content": ".content",
    "result.tool_call_id": ".tool_use_id",
    "image.image_url": ".source",
    "document.text": ".source.data",
    "turn.text": ".content",
    "'image_url'": "'image'",
    "call.function": "",
    "call.function.arguments": ".input",
}
