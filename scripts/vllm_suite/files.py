"""Which of vLLM's files in tests/entrypoints/openai run here, and why the others cannot.

A file of the source package that stands in neither list is an error: it is new.
"""

from __future__ import annotations

RUN: tuple[str, ...] = (
    "chat_completion/test_batched_chat_completions.py",
    "chat_completion/test_chat.py",
    "chat_completion/test_chat_completion.py",
    "chat_completion/test_chat_completion_with_prompt_embeds.py",
    "chat_completion/test_chat_echo.py",
    "chat_completion/test_chat_logit_bias_validation.py",
    "chat_completion/test_completion_with_function_calling.py",
    "chat_completion/test_enable_force_include_usage.py",
    "chat_completion/test_include_reasoning.py",
    "chat_completion/test_logprob_token_ids.py",
    "chat_completion/test_thinking_token_budget.py",
    "completion/test_completion.py",
    "completion/test_completion_with_prompt_embeds.py",
    "completion/test_prompt_validation.py",
    "models/test_models.py",
    "responses/test_basic.py",
    "responses/test_function_call.py",
    "responses/test_namespace_tool_separator.py",
    "responses/test_simple.py",
    "responses/test_stateful.py",
    "responses/test_structured_output.py",
    "test_chunked_prompt.py",
    "test_return_token_ids.py",
    "test_return_tokens_as_ids.py",
)

_IN_PROCESS = "calls functions of vLLM in the test's process: nothing of this project takes part"
_GPT_OSS = "needs openai/gpt-oss-20b, whose format nothing small enough for a CPU has"
_HUB = "needs a model or a data set of the hub"

CANNOT_RUN: dict[str, str] = {
    "chat_completion/test_chat_error.py": _IN_PROCESS,
    "chat_completion/test_extra_content_fields.py": f"{_HUB}: google/translategemma-4b-it",
    "chat_completion/test_non_object_body_validation.py": _IN_PROCESS,
    "chat_completion/test_root_path.py": (
        "sets vLLM's `--root-path` and `--api-key`: the address of a model is the Serve file's"
    ),
    "chat_completion/test_serving_chat.py": _IN_PROCESS,
    "chat_completion/test_thinking_token_budget_validation.py": _IN_PROCESS,
    "completion/test_completion_error.py": _IN_PROCESS,
    "completion/test_completion_text_offset.py": _IN_PROCESS,
    "completion/test_lora_resolvers.py": _IN_PROCESS,
    "completion/test_tensorizer_entrypoint.py": "needs the package tensorizer and a GPU",
    "completion/test_token_in_token_out.py": (
        "downloads a model without its tokenizer from the hub, and starts it with random weights"
    ),
    "correctness/test_lmeval.py": f"{_HUB}: gsm8k",
    "parser/test_harmony_render_parity.py": _IN_PROCESS,
    "parser/test_harmony_utils.py": _IN_PROCESS,
    "responses/test_errors.py": _IN_PROCESS,
    "responses/test_function_call_parsing.py": _IN_PROCESS,
    "responses/test_harmony.py": _GPT_OSS,
    "responses/test_harmony_utils.py": _IN_PROCESS,
    "responses/test_mcp_tools.py": _GPT_OSS,
    "responses/test_parsable_context.py": "needs Qwen/Qwen3-8B, which must call tools by itself",
    "responses/test_parsable_context_unit.py": _IN_PROCESS,
    "responses/test_protocol.py": _IN_PROCESS,
    "responses/test_response_input_to_harmony.py": _IN_PROCESS,
    "responses/test_responses_utils.py": _IN_PROCESS,
    "responses/test_sampling_params.py": _IN_PROCESS,
    "responses/test_serving_responses.py": _IN_PROCESS,
    "responses/test_streaming_events.py": _IN_PROCESS,
    "test_openai_schema.py": f"{_HUB}: HuggingFaceTB/SmolVLM-256M-Instruct",
    "test_penalty_default_resolution.py": _IN_PROCESS,
    "test_reasoning_enable_thinking.py": _IN_PROCESS,
    "test_render_parity.py": "starts vLLM's render server, which serves no model",
    "test_render_token_offsets.py": _IN_PROCESS,
    "test_session_id.py": _IN_PROCESS,
    "test_stop_token_ids.py": _IN_PROCESS,
    "test_tool_calls_serialization.py": _IN_PROCESS,
    "test_tool_choice_content_none.py": _IN_PROCESS,
    "test_watermarking.py": _IN_PROCESS,
}

EXPECTED: dict[str, str] = {
    "test_chat::test_invocations": "SageMaker's `/invocations` is not served",
}
"""Tests that fail through the router alone, by a part of their name, and why that is meant."""
