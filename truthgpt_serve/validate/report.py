"""The outcome of a validation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from truthgpt_serve.config import ModelConfig, RouterConfig, Source
from truthgpt_serve.config.playground import PlaygroundConfig
from truthgpt_serve.errors import Fault

ConfigT = TypeVar("ConfigT")


@dataclass(frozen=True, slots=True)
class Checked(Generic[ConfigT]):
    """An application, or a model's file, whose configuration could be read.

    Attributes:
        config: Its configuration; faulty keys have their defaults.
        place: Where it stands.
        deployment: Its entry under `deployments:` in the Serve file, or None.
        name: The application's name, or None for a file that was checked by itself.
    """

    config: ConfigT
    place: Source
    deployment: Mapping[str, Any] | None = None
    name: str | None = None


CheckedModel = Checked[ModelConfig]


@dataclass(slots=True)
class Report:
    """What was checked, what is wrong, and what could not be checked here.

    Attributes:
        checked: One line for each application or file without a fault.
        notes: What the user should know, without being at fault.
        faults: Every mistake, in the order of the files.
        models: The models that could be read.
        routers: The routers that could be read.
        playgrounds: The playgrounds that could be read.
    """

    checked: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    models: list[CheckedModel] = field(default_factory=list)
    routers: list[Checked[RouterConfig]] = field(default_factory=list)
    playgrounds: list[Checked[PlaygroundConfig]] = field(default_factory=list)

    def add(self, faults: Iterable[Fault], source: Source | None = None) -> None:
        """Adds the faults that are not there yet: two applications may share a file.

        Args:
            faults: What is wrong.
            source: Where the values stand that the messages may show.
        """
        for fault in faults if source is None else source.hidden.hide_faults(faults):
            if fault not in self.faults:
                self.faults.append(fault)
