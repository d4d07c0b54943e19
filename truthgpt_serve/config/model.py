"""The whole configuration of one model: its sections, and what must hold between them.

Checks that need files or the registry are in `truthgpt_serve.checks`.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import Annotated, Any

from pydantic import Field, PrivateAttr, model_validator

from truthgpt_serve.config.base import Refusal, Section, Text, refuse
from truthgpt_serve.config.data import DataSection
from truthgpt_serve.config.sections import HardwareSection, ModelOptimSection, ModelSection
from truthgpt_serve.config.serving import ServingSection
from truthgpt_serve.config.source import Source
from truthgpt_serve.config.training import TrainingSection
from truthgpt_serve.config.training.fsdp import sharding_refusals
from truthgpt_serve.config.variables import without_marks
from truthgpt_serve.contract import Task

DEFAULT_FAMILIES: dict[str, str] = {
    "text-generation": "vllm",
    "image-generation": "hf-diffusers",
    "embedding": "vllm",
    "tensor": "onnxruntime",
    "custom": "custom",
}
"""The family of a task whose configuration names none."""


class ModelConfig(Section):
    """One YAML file for one model: train it, run it, serve it."""

    run_name: Text = "demo"
    """Name of the run, for training output (`runs/<run_name>`) and for a model that is run offline.
    The served model name is the application's, not this."""

    seed: Annotated[int, Field(ge=0, le=2**32 - 1)] = 42
    """Seed of every random generator, for repeatable training and sampling; NumPy takes no larger
    one."""

    task: Task = "text-generation"
    """What the model does, and so which endpoints it answers."""

    model: ModelSection = Field(default_factory=ModelSection)
    """Which weights, and which family runs them."""

    training: TrainingSection = Field(default_factory=TrainingSection)
    """Hyperparameters of `truthgpt train`."""

    model_optim: ModelOptimSection = Field(default_factory=ModelOptimSection)
    """Memory and speed of the model itself."""

    hardware: HardwareSection = Field(default_factory=HardwareSection)
    """What one replica takes of the cluster."""

    data: DataSection = Field(default_factory=DataSection)
    """The data set of `truthgpt train`."""

    serving: ServingSection = Field(default_factory=ServingSection)
    """How the model is served."""

    _source: Source = PrivateAttr(default_factory=Source)

    @model_validator(mode="after")
    def _check_run_name(self) -> ModelConfig:
        """Refuses a name by which `runs/<run_name>` is no folder below `runs`."""
        path = PurePath(self.run_name)
        if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in self.run_name:
            message = f"{self.run_name!r} names no folder below runs"
            fix = "write a plain name, or give another folder by --out"
            raise refuse([Refusal("run_name", message, fix)])
        return self

    @model_validator(mode="after")
    def _fill_family(self) -> ModelConfig:
        if self.model.family is None:
            self.model.family = DEFAULT_FAMILIES[self.task]
        return self

    @model_validator(mode="after")
    def _train_the_adapter(self) -> ModelConfig:
        """Makes `model.adapter` mean that an adapter is trained; refuses what contradicts it."""
        lora, key = self.model_optim.lora, "model_optim.lora"
        if not self.model.adapter:
            if lora.stack:
                message = "has no effect without model.adapter, below the fresh adapter"
                fix = "name that adapter, or remove it"
                raise refuse([Refusal(f"{key}.stack", message, fix, ("model", f"{key}.enabled"))])
            return self
        if "enabled" in lora.model_fields_set and not lora.enabled:
            message = "false contradicts model.adapter, which is trained further"
            fix = "remove it; or, to train all weights, first add the adapter: truthgpt merge"
            raise refuse([Refusal(f"{key}.enabled", message, fix, ("model",))])
        lora.enabled = True
        return self

    @model_validator(mode="after")
    def _check_sharding(self) -> ModelConfig:
        if found := list(sharding_refusals(self.task, self.training, self.model_optim)):
            raise refuse(found)
        return self

    @property
    def family(self) -> str:
        """The family's name; never empty, `custom` not yet resolved."""
        return self.model.family or DEFAULT_FAMILIES[self.task]

    @property
    def source(self) -> Source:
        """Where the configuration was read, for the places of faults."""
        return self._source

    def to_cfg(self) -> dict[str, Any]:
        """Returns the plain nested dict that a family's `load` gets, every section present."""
        cfg: dict[str, Any] = without_marks(self.model_dump(mode="python", by_alias=True))
        return cfg
