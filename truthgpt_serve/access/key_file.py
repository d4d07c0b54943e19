"""The file with the keys: its form, and reading it with every fault at once.

Only the SHA-256 of each key is in it, and no message shows a key that was written there by mistake.
"""

from __future__ import annotations

import errno
import math
import os
import re
import stat
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from truthgpt_serve.access.credentials import hide_keys_of_faults
from truthgpt_serve.access.identity import Identity, Limits
from truthgpt_serve.access.moments import FORM, as_text, read_moment
from truthgpt_serve.config.base import Count, Name, PositiveNumber, Refusal, Section, refuse
from truthgpt_serve.config.load import read_file
from truthgpt_serve.config.parse import parse
from truthgpt_serve.config.source import MAX_FILE_BYTES
from truthgpt_serve.errors import ConfigError, Fault

_FastLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
MAX_NAME = 64
MAX_MODELS = 256
MAX_KEYS = 4000
_NULL = "tag:yaml.org,2002:null"
_MAX_DEPTH = 20
_BRACKET = re.compile(rb"[\[\]{}]")
_MARKS = re.compile(rb"(?:[-?][ \t]+){%d}" % _MAX_DEPTH)
_HEX = re.compile(r"[0-9a-f]{64}")
_PATTERN = re.compile(r"[A-Za-z0-9*][A-Za-z0-9._:@+/*-]*")


def _check_hex(value: str) -> str:
    if _HEX.fullmatch(value) is None:
        fix = "make keys with `truthgpt keys add`: the file never has a key itself"
        raise refuse([Refusal("", "is not a SHA-256 in 64 hexadecimal digits", fix)])
    return value


def _check_moment(value: str) -> str:
    try:
        read_moment(value)
    except ValueError as error:
        raise refuse([Refusal("", "is no moment", FORM.removesuffix(" or 90d"))]) from error
    return value


def _check_pattern(value: str) -> str:
    if _PATTERN.fullmatch(value) is None:
        fix = "write a model's name, in which * stands for any letters"
        raise refuse([Refusal("", "is no pattern of model names", fix)])
    return value


Hex = Annotated[str, AfterValidator(_check_hex)]
Moment = Annotated[str, BeforeValidator(as_text), AfterValidator(_check_moment)]
ModelPattern = Annotated[str, Field(max_length=256), AfterValidator(_check_pattern)]


class FormerKey(Section):
    """The key before the last rotation, which still works for a while."""

    sha256: Hex
    """SHA-256 of the key."""

    until: Moment
    """When it stops to work."""


class KeyHead(Section):
    """Which key it is, and what for."""

    name: Annotated[Name, Field(max_length=MAX_NAME)]
    """Its name, which stands in logs and metrics in its place."""

    sha256: Hex
    """SHA-256 of the key."""

    created: Moment | None = None
    """When it was made, or rotated last."""

    expires: Moment | None = None
    """When it stops to work; a day alone is its beginning in UTC."""

    models: Annotated[list[ModelPattern], Field(min_length=1, max_length=MAX_MODELS)] | None = None
    """Models that it may use, by name, with `*` for any letters; all by default."""


class LimitsSection(Section):
    """What may be used; what is left out has no limit."""

    requests_per_minute: Count | None = None
    """Requests in a minute."""

    tokens_per_minute: Count | None = None
    """Prompt and generation tokens in a minute."""

    image_megapixel_steps_per_minute: PositiveNumber | None = None
    """Denoising steps times megapixels in a minute."""

    max_concurrent: Count | None = None
    """Requests at the same time."""

    def to_limits(self) -> Limits:
        """Returns the limits."""
        return Limits(
            self.requests_per_minute,
            self.tokens_per_minute,
            self.image_megapixel_steps_per_minute,
            self.max_concurrent,
        )


class KeyEntry(LimitsSection, KeyHead):
    """One key."""

    model_limits: Annotated[dict[ModelPattern, LimitsSection], Field(max_length=MAX_MODELS)] = (
        Field(default_factory=dict)
    )
    """Further limits of the requests to some models, by name, with `*` for any letters; the first
    name that fits counts."""

    priority: Annotated[int, Field(ge=-100, le=100)] = 0
    """Requests of keys with a higher number come before those of others, wherever they wait."""

    weight: Annotated[float, Field(gt=0, le=1000)] = 1.0
    """Its share of a model that cannot do all at once, in proportion to that of other keys."""

    admin: bool = False
    """Whether it may read what all keys use."""

    previous: FormerKey | None = None
    """The key before the last rotation."""

    def to_identity(
        self, cached_token_weight: float = 1.0, *, has_own_cache: bool = False
    ) -> Identity:
        """Returns the key without the key itself.

        Args:
            cached_token_weight: That of the whole file.
            has_own_cache: As the whole file says.
        """
        return Identity(
            name=self.name,
            models=None if self.models is None else tuple(self.models),
            limits=self.to_limits(),
            model_limits=tuple((name, one.to_limits()) for name, one in self.model_limits.items()),
            priority=self.priority,
            weight=self.weight,
            admin=self.admin,
            expires_s=read_moment(self.expires).timestamp() if self.expires else math.inf,
            cached_token_weight=cached_token_weight,
            has_own_cache=has_own_cache,
        )


class KeyFile(Section):
    """The whole file."""

    internal_secret: Hex | None = None
    """Random, for what the service's own processes ask of each other. Without it a scrape of
    metrics has one replica of each model, and cards of models say less."""

    cached_token_weight: Annotated[float, Field(ge=0, le=1)] = 1.0
    """As how much of a token one from the prefix cache counts in `tokens_per_minute`."""

    separate_prefix_caches: bool = False
    """Whether no key finds another one's prompts in vLLM's prefix cache, which answers that come
    early would tell it. What keys have in common is then computed for each."""

    keys: Annotated[list[KeyEntry], Field(max_length=MAX_KEYS)] = Field(default_factory=list)
    """The keys."""

    @model_validator(mode="after")
    def _check_twice(self) -> KeyFile:
        names: dict[str, int] = {}
        digests: dict[str, int] = {}
        refusals = []
        for at, key in enumerate(self.keys):
            given = [(names, key.name, "name"), (digests, key.sha256, "sha256")]
            if key.previous is not None:
                given.append((digests, key.previous.sha256, "previous.sha256"))
            for taken, value, field in given:
                first = taken.setdefault(value, at)
                is_own = field == "previous.sha256" and value == key.sha256
                if first != at or is_own:
                    message = f"is given twice, first at keys[{first}]"
                    refusals.append(Refusal(f"keys[{at}].{field}", message, "keep one"))
        if refusals:
            raise refuse(refusals)
        return self


@hide_keys_of_faults()
def read_keys(path: Path) -> KeyFile:
    """Returns what a file with keys holds.

    Raises:
        ConfigError: It cannot be read, or has faults; the message names them all.
    """
    data, source = read_file(path, opener=_open_regular)
    config, faults, _ = parse(KeyFile, {} if data is None else data, source)
    if config is None or faults:
        raise ConfigError(faults or [Fault(str(path), "is no file of keys")])
    return config


def reread_keys(path: Path) -> KeyFile | None:
    """Returns what `read_keys` does, for a file with a thousand keys ten times as fast.

    What this finds wrong is read again the other way, which names each place.

    Returns:
        None for a file without content, as one has that is about to be written.

    Raises:
        ConfigError: As `read_keys`.
        OSError: It cannot be read.
    """
    data = read_bytes(path)
    if len(data) > MAX_FILE_BYTES or _may_be_deep(data):
        return read_keys(path)
    loader = None
    try:
        loader = _FastLoader(data.decode())
        node = loader.get_single_node()
        if node is None or node.tag == _NULL:
            return None
        if _has_no_key_twice(node):
            return KeyFile.model_validate(loader.construct_document(node))
    except (yaml.YAMLError, ValueError, RecursionError):
        pass
    finally:
        if loader is not None:
            loader.dispose()
    return read_keys(path)


def read_bytes(path: Path) -> bytes:
    """Returns what is in a regular file, but not much more than a file of keys may have.

    Raises:
        OSError: It cannot be read.
    """
    with open(path, "rb", opener=_open_regular) as file:
        return file.read(MAX_FILE_BYTES + 1)


def _may_be_deep(data: bytes) -> bool:
    """Returns whether a document may be nested more deeply than one of keys ever is.

    The fast loader goes down as deep as the document does, until its stack overflows and ends the
    process. Brackets in texts and comments count too: the other loader then decides.
    """
    depth = 0
    for bracket in _BRACKET.finditer(data):
        depth = depth + 1 if bracket[0] in b"[{" else max(0, depth - 1)
        if depth > _MAX_DEPTH:
            return True
    return _MARKS.search(data) is not None


def _open_regular(path: str, flags: int) -> int:
    """Opens a regular file: a pipe would have its reader wait for ever.

    Raises:
        OSError: It is none, or cannot be opened.
    """
    descriptor = os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file", path)
    return descriptor


def _has_no_key_twice(root: yaml.Node) -> bool:
    """Returns whether the mappings of a document have each key once, and no value stands twice."""
    seen = set()
    waiting = [root]
    while waiting:
        node = waiting.pop()
        if id(node) in seen:
            return False
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys = {key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)}
            if len(keys) != len(node.value):
                return False
            waiting += [value for _, value in node.value]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value
    return True
