"""Schedulers by name: which fit a pipeline, and a new one for each request."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from cachetools import LRUCache

from deployments.hf_diffusers.choices import SCHEDULERS, scheduler_class
from truthgpt_serve.errors import ConfigError, Fault, RequestError
from truthgpt_serve.wording import shown, suggest

logger = logging.getLogger(__name__)

TRIAL_STEPS = 4
NEEDED: dict[str, dict[str, Any]] = {"DPMSolverSinglestepScheduler": {"lower_order_final": True}}
"""Arguments without which a class changes its own configuration, with a warning each time."""
_TRIED: LRUCache[tuple[Any, str], bool] = LRUCache(256)
"""Whether a class works with a configuration: to make some takes 0.2 s of a core."""


class Schedulers:
    """Makes the schedulers that requests name, from the configuration of the pipeline's own.

    Args:
        own: The pipeline's scheduler.
        allowed: Names that requests may use, or None for every one that fits.

    Raises:
        ConfigError: An allowed name does not fit the pipeline.
    """

    def __init__(self, own: Any, allowed: Sequence[str] | None) -> None:
        self._config = own.config
        self._own = type(own).__name__
        fitting = self._find_fitting(own)
        if allowed is not None:
            for name in allowed:
                if scheduler_class(name) not in fitting:
                    message = f"{name!r} does not fit this pipeline, whose own is {self._own}"
                    fix = suggest(name, self._names(fitting))
                    raise ConfigError([Fault("serving.engine.schedulers", message, fix)])
            wanted = {scheduler_class(name) for name in allowed}
            fitting = {name: cls for name, cls in fitting.items() if name in wanted}
        self._classes = fitting

    @property
    def names(self) -> list[str]:
        """The short names, for messages."""
        return self._names(self._classes)

    @staticmethod
    def _names(classes: dict[str, Any]) -> list[str]:
        short = {cls: name for name, cls in SCHEDULERS.items()}
        return sorted(short.get(name, name) for name in classes)

    def _find_fitting(self, own: Any) -> dict[str, Any]:
        """Returns the listed classes that diffusers calls compatible and that work here."""
        known = set(SCHEDULERS.values())
        found = {self._own: type(own)}
        for cls in own.compatibles:
            if cls is not type(own) and cls.__name__ in known and self._works(cls):
                found[cls.__name__] = cls
        return found

    def _works(self, cls: Any) -> bool:
        asked = cls, repr(sorted(self._config.items()))
        if asked not in _TRIED:
            _TRIED[asked] = self._try(cls)
        return _TRIED[asked]

    def _try(self, cls: Any) -> bool:
        """Takes one step, because some only then find that they do not know the prediction type."""
        sample = torch.zeros(1, 4, 8, 8)
        try:
            scheduler = self._create(cls)
            scheduler.set_timesteps(TRIAL_STEPS)
            timestep = scheduler.timesteps[0]
            scheduler.step(scheduler.scale_model_input(sample, timestep), timestep, sample)
        except (ImportError, ValueError, NotImplementedError, TypeError) as error:
            logger.info("scheduler %s is left out: %s", cls.__name__, error)
            return False
        return True

    def _create(self, cls: Any) -> Any:
        return cls.from_config(self._config, **NEEDED.get(cls.__name__, {}))

    def make(self, name: str, num_steps: int) -> Any:
        """Returns a new scheduler.

        Args:
            name: A short name or the name of the class.
            num_steps: Denoising steps that it will be asked for.

        Raises:
            RequestError: There is none of that name, or it does not fit; the message lists those
                that do. Or it cannot do so few steps.
        """
        cls = self._classes.get(scheduler_class(name) or name)
        if cls is None:
            raise RequestError(
                f"there is no scheduler {shown(name)} for this model ({suggest(name, self.names)}; "
                f"it has {', '.join(self.names)})",
                param="scheduler",
            )
        if not self._config.get("use_dynamic_shifting"):  # those need the image's size as well
            try:
                self._create(cls).set_timesteps(num_steps)
            except (ValueError, IndexError) as error:
                message = f"the scheduler {name!r} cannot make an image in {num_steps} steps"
                raise RequestError(f"{message}: use more", param="steps") from error
        return self._create(cls)
