"""The `serving.limits` section: how much one request may ask for."""

from __future__ import annotations

from truthgpt_serve.config.base import Count, Seconds, Section


class TextLimitsSection(Section):
    """How much one request may ask for, so that it does not hold up the others.

    A request beyond a limit is answered 400 with the limit's name. They hold for text and embedding
    models; images have `serving.images`.
    """

    max_n: Count = 32
    """Most answers to one prompt: `n`, `best_of` and the width of a beam search. More lets one
    request take more of the engine's places at once."""

    max_prompts: Count = 128
    """Most prompts of one completion request, or conversations of one batch. More makes others
    wait longer behind it."""

    max_inputs: Count = 2048
    """Most texts of one request for embeddings, classes, scores or a ranking. More makes others
    wait longer behind it."""

    max_total_tokens: Count = 262144
    """Most tokens that a request for several answers may make in all: prompts times `n` times
    `max_tokens`. Without `max_tokens`, 8192 are counted for each, 16 on `/v1/completions`, or the
    model's length if that is less. A request for one answer is bounded by the model's length alone.
    More makes others wait longer."""

    max_messages: Count = 8192
    """Most messages of a conversation, the parts of their contents counted too. More takes more
    time before the engine sees the request."""

    max_tools: Count = 512
    """Most tools of one request."""

    max_logprobs: Count = 20
    """Most log probabilities for each token (`logprobs`, `top_logprobs`, `prompt_logprobs`), -1
    being all of the vocabulary. The engine's own `max_logprobs` bounds them too. More costs memory
    and time for every token."""

    max_stop_strings: Count = 16
    """Most strings that end an answer, and most token ids that do. More costs time for every
    token."""

    max_logit_bias: Count = 1024
    """Most entries of `logit_bias` and of `bad_words`. More costs time for every token."""

    max_schema_bytes: Count = 262144
    """Largest JSON schema, grammar, list of choices or structural tag in bytes, and the schemas of
    all tools together where they bind the answer. The engine turns it into a grammar, in a time
    that can grow with its square."""

    max_regex_bytes: Count = 16384
    """Longest regular expression in bytes, alone or as a `pattern` in a schema."""

    max_grammar_s: Seconds = 10
    """Seconds that one grammar may take to compile. It happens beside the engine, so a slow one
    delays its own request alone; where several wait, each has at least 2 s. More admits larger
    schemas, above all of optional properties and long bounded strings with a large vocabulary."""
