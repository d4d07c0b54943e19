"""Who sends a request: the name of its key, what it may use, and its limits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

SCOPE_KEY = "truthgpt.identity"
"""Where the identity of a request stands in its ASGI scope."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a key may use; None sets no limit.

    Attributes:
        requests_per_minute: Requests in a minute.
        tokens_per_minute: Prompt and generation tokens in a minute.
        image_megapixel_steps_per_minute: Denoising steps times megapixels in a minute.
        max_concurrent: Requests at the same time.
    """

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    image_megapixel_steps_per_minute: float | None = None
    max_concurrent: int | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """A key without the key itself.

    Attributes:
        name: Its name, which stands in logs and metrics.
        models: Patterns of the models that it may use, with `*`; None for all.
        limits: Its limits.
        priority: Which requests wait less: those with the higher number.
        admin: Whether it may read what others use.
        expires_s: When it stops to work, seconds since the epoch.
        is_internal: Whether it is that of a process of the service, which only reads.
        model_limits: Further limits of the requests to some models, by patterns of their names.
        cached_token_weight: As how much of a token one from the prefix cache counts.
        weight: Its share of a model that cannot do all at once, in proportion to that of others.
        has_own_cache: Whether its requests find no prefixes of other keys in a prefix cache.
    """

    name: str
    models: tuple[str, ...] | None = None
    limits: Limits = field(default_factory=Limits)
    priority: int = 0
    admin: bool = False
    expires_s: float = math.inf
    is_internal: bool = False
    model_limits: tuple[tuple[str, Limits], ...] = ()
    cached_token_weight: float = 1.0
    weight: float = 1.0
    has_own_cache: bool = False

    def limits_of(self, model: str) -> Limits | None:
        """Returns the further limits of the requests to a model: those of the first pattern."""
        for pattern, limits in self.model_limits:
            if _matches(pattern, model):
                return limits
        return None

    def may_use(self, name: str, model: str) -> bool:
        """Returns whether it may use a model under a name.

        Args:
            name: The name of the request: the model's own, an alias or an adapter.
            model: The model's own name. Who may use that may use all names of the model.
        """
        if self.models is None:
            return True
        return any(_matches(pattern, name) or _matches(pattern, model) for pattern in self.models)

    def may_use_any(self, names: Iterable[str], model: str) -> bool:
        """Returns whether it may use a model under one of its names."""
        return self.models is None or any(self.may_use(name, model) for name in names)


ANONYMOUS = Identity("-anonymous", models=())
"""Who reads a route that needs no key; no key can have this name."""


def _matches(pattern: str, name: str) -> bool:
    return pattern == name or ("*" in pattern and fnmatchcase(name, pattern))


def identity_of(scope: Mapping[str, Any]) -> Identity | None:
    """Returns who sends a request; None where the service asks for no keys."""
    identity = scope.get(SCOPE_KEY)
    return identity if isinstance(identity, Identity) else None
