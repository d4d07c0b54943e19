"""What one request used, noted where it is known: tokens, images and seconds of audio.

The gate in front of a replica opens a `Usage` for each request of a key; the routes and engines
behind it add to it, in whatever task they run, by the functions here. Without keys nothing is
counted, and the functions do nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

_current: ContextVar[Usage | None] = ContextVar("truthgpt_usage", default=None)


@dataclass(slots=True)
class Usage:
    """What a request has used so far, and what its engine has to know of its key.

    Attributes:
        prompt_tokens: Tokens of its prompts, those from the prefix cache included.
        cached_tokens: Those of them that came from the prefix cache.
        completion_tokens: Tokens that were generated, also if the client did not wait for them.
        images: Images that were made.
        megapixel_steps: Denoising steps times megapixels of these images.
        audio_s: Seconds of audio that were read or made.
        queued_s: Seconds that it waited for its turn.
        status: Of its answer, once that has begun; 0 before, and where its client left before.
        broke_off: Whether an answer that had begun failed.
        failed: Whether its answer is an error; known at its end.
        refusal: Why it was refused with 429, in a word; empty if that is not known.
        priority: Of the key: the higher, the earlier; None without keys.
        weight: The share of the key, in proportion to those of others.
        key: Its key's name; empty without keys.
        cache_salt: Whose prefixes it may find in a cache: those of requests with the same salt.
        reserve_images: Counts megapixel steps before the work, and may refuse them; None where
            they have no limit.
        at_end: Add what is known at the request's end, however it ended; called once.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    images: int = 0
    megapixel_steps: float = 0.0
    audio_s: float = 0.0
    queued_s: float = 0.0
    status: int = field(default=0, compare=False)
    broke_off: bool = False
    failed: bool = False
    refusal: str = ""
    priority: int | None = None
    weight: float = 1.0
    key: str = field(default="", compare=False)
    cache_salt: str = ""
    reserve_images: Callable[[float], Awaitable[None]] | None = None
    at_end: list[Callable[[Usage], None]] = field(default_factory=list, compare=False)

    def finish(self, *, failed: bool = False) -> None:
        """Adds what is known at the end of the request.

        Args:
            failed: Whether its answer is an error.
        """
        self.failed |= failed
        while self.at_end:
            self.at_end.pop()(self)


class counting:
    """Has what runs in this block, and in the tasks that it starts, add to a usage.

    A class, as every request passes two of them: a generator takes three times as long.

    Args:
        usage: The usage.
    """

    __slots__ = ("_token", "_usage")

    def __init__(self, usage: Usage) -> None:
        self._usage = usage

    def __enter__(self) -> None:
        self._token = _current.set(self._usage)

    def __exit__(self, *error: object) -> None:
        _current.reset(self._token)


def current_usage() -> Usage | None:
    """Returns that of the request of this task, to add to it later from elsewhere; None if none."""
    return _current.get()


def add_tokens(prompt: int, completion: int, cached: int = 0) -> None:
    """Adds tokens to the request of this task."""
    if (usage := _current.get()) is not None:
        usage.prompt_tokens += prompt
        usage.completion_tokens += completion
        usage.cached_tokens += cached


def add_images(number: int, megapixel_steps: float) -> None:
    """Adds images to the request of this task.

    Args:
        number: How many.
        megapixel_steps: Denoising steps times megapixels of all of them.
    """
    if (usage := _current.get()) is not None:
        usage.images += number
        usage.megapixel_steps += megapixel_steps


async def reserve_images(megapixel_steps: float) -> None:
    """Asks whether the request of this task may make images.

    Args:
        megapixel_steps: Denoising steps times megapixels of all of them.

    Raises:
        RateLimitError: Its key has used too much.
    """
    usage = _current.get()
    if usage is not None and usage.reserve_images is not None:
        await usage.reserve_images(megapixel_steps)


def note_break() -> None:
    """Notes that the answer of the request of this task failed after it had begun."""
    if (usage := _current.get()) is not None:
        usage.broke_off = True


def note_refusal(reason: str) -> None:
    """Notes why the request of this task is refused with 429, in a word for metrics."""
    if (usage := _current.get()) is not None:
        usage.refusal = reason


def add_audio(seconds: float) -> None:
    """Adds seconds of audio to the request of this task."""
    if (usage := _current.get()) is not None:
        usage.audio_s += seconds
