"""One text that is being generated: turns its tokens into text, and finds what ends it.

The pieces are made in the engine's thread and taken on the event loop that asked for the text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from deployments.hf_transformers.generation.binding import Thoughts, start_follower
from deployments.hf_transformers.generation.sampling import Row, TokenLogprob
from truthgpt_serve.channel import Channel
from truthgpt_serve.server.text.detokenizer import Detokenizer
from truthgpt_serve.server.text.filter import TextFilter
from truthgpt_serve.server.text.sampling import Sampling

Decode = Callable[[list[int]], str]


@dataclass(frozen=True, slots=True)
class TextCall:
    """What a request asks for, checked.

    Attributes:
        prompt: Token ids of the prompt.
        max_new_tokens: Most tokens of the answer.
        sampling: How the tokens are chosen.
        stops: Texts that end the answer.
        end_ids: Tokens that end it.
        num_top: How many of the likeliest tokens are wanted beside each token; None for no log
            probabilities.
        scores_prompt: Whether the log probabilities of the prompt are wanted, too.
        constraint: The compiled grammar that binds the answer, or None.
        thoughts: How the answer thinks first, where that is bound too.
    """

    prompt: list[int]
    max_new_tokens: int
    sampling: Sampling
    stops: tuple[str, ...] = ()
    end_ids: frozenset[int] = frozenset()
    num_top: int | None = None
    scores_prompt: bool = False
    constraint: Any = None
    thoughts: Thoughts | None = None


class TextJob:
    """A text that is being made.

    Attributes:
        call: What was asked for.
        row: Its row in the sampler.
        name: Unique in the process.
        num_tokens: Tokens that were taken.
        finished: Nothing follows: it ended, failed or was cancelled.
        reason: `stop` or `length`, once it ended.
        channel: Where the pieces go, without waking the reader; None for a trial of the engine's.
    """

    def __init__(
        self,
        call: TextCall,
        name: str,
        decode: Decode,
        channel: Channel | None = None,
        *,
        whole: bool = False,
    ) -> None:
        self.call = call
        self.name = name
        follower = start_follower(call.constraint, call.thoughts, call.end_ids)
        self.row = Row(
            call.sampling, call.prompt, call.end_ids, num_top=call.num_top, follower=follower
        )
        self.num_tokens = 0
        self.finished = False
        self.reason: str | None = None
        self.channel = channel
        self._whole = whole
        self._num_given = 0
        self._detokenizer = Detokenizer(decode, call.prompt)
        self._filter = TextFilter("", list(call.stops))

    @property
    def stop(self) -> str | None:
        """The stop string that ended it, or None."""
        return self._filter.stop

    @property
    def is_due(self) -> bool:
        """Whether the reader wants what there is: at once, or the whole text at its end."""
        return self.finished or not self._whole

    def ends_with(self, token: int, num_tokens: int) -> str | None:
        """Returns why the text ends with its token number `num_tokens`, or None."""
        if token in self.call.end_ids:
            return "stop"
        return "length" if num_tokens >= self.call.max_new_tokens else None

    def take(self, token: int) -> None:
        """Takes the next token, in the engine's thread.

        Raises:
            ReaderGoneError: The reader of the pieces is gone.
        """
        if self.finished:
            return
        self.num_tokens += 1
        self.reason = self.ends_with(token, self.num_tokens)
        text = "" if token in self.call.end_ids else self._detokenizer.push(token)
        if self.reason is not None:
            text += self._detokenizer.flush()
        text = self._filter.push(text)
        if self._filter.stopped:
            self.reason = "stop"
        elif self.reason is not None:
            text += self._filter.flush()
            self.reason = "stop" if self._filter.stopped else self.reason
        if text and self.channel is not None:
            self.channel.put(text, wake=False)
        if self.reason is not None:
            self._end(None)

    def take_logprobs(self) -> list[TokenLogprob]:
        """Returns the log probabilities of the tokens since the last call, for the reader."""
        first, self._num_given = self._num_given, self.num_tokens
        return self.row.logprobs[first : self._num_given]

    def fail(self, error: BaseException) -> None:
        """Ends the text with an error; without effect on one that has ended."""
        if not self.finished:
            self._end(error)

    def _end(self, error: BaseException | None) -> None:
        self.finished = True
        if self.channel is not None:
            self.channel.finish(error, wake=False)

    async def next(self) -> str | None:
        """Waits for the next piece of the text; None at its end.

        Raises:
            BaseException: The error given to `fail`.
        """
        assert self.channel is not None, "a trial has no reader"
        return "".join(await self.channel.get()) or None
