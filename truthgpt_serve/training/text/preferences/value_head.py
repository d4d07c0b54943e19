"""One number for each token: what `ppo` expects of an answer from there on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

FILE = "value_head.safetensors"


class ValueHead(torch.nn.Linear):  # type: ignore[misc] # torch counts as Any here
    """Reads the last hidden states of a model; its first values are 0.

    It is no part of the model: the result of the run is an ordinary model without it.

    Args:
        model: The model that learns, with or without an adapter.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model.config.get_text_config().hidden_size, 1)
        torch.nn.init.zeros_(self.weight)
        torch.nn.init.zeros_(self.bias)
        self._seen: list[torch.Tensor] | None = None
        model.get_decoder().register_forward_hook(self._see)

    def _see(self, _: Any, __: Any, output: Any) -> None:
        if self._seen is not None:
            self._seen.append(output.last_hidden_state)

    @contextmanager
    def watching(self) -> Iterator[list[torch.Tensor]]:
        """Collects the hidden states of the forward passes meanwhile; each (rows, tokens, size)."""
        found: list[torch.Tensor] = []
        self._seen = found
        try:
            yield found
        finally:
            self._seen = None

    def values_of(self, hidden: list[torch.Tensor], num_tokens: int) -> torch.Tensor:
        """Returns what was expected before each of the last tokens; shape (rows, num_tokens)."""
        states = torch.cat([each[:, -num_tokens - 1 : -1] for each in hidden])
        values: torch.Tensor = self(states.to(self.weight)).squeeze(-1)
        return values

    def save(self, folder: Path) -> None:
        """Writes the weights into a checkpoint."""
        save_file({name: weight.cpu() for name, weight in self.state_dict().items()}, folder / FILE)

    def load(self, folder: Path) -> None:
        """Reads the weights of a checkpoint.

        Raises:
            OSError: There are none.
        """
        self.load_state_dict(load_file(folder / FILE))


class ValueHeadSync(TrainerCallback):  # type: ignore[misc] # transformers counts as Any
    """Averages the head's gradients over all workers, clips and forgets them with each step."""

    def __init__(self, head: ValueHead, accelerator: Any) -> None:
        self._head, self._accelerator = head, accelerator

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Is called when the gradients of a step are whole."""
        for weight in self._head.parameters():
            if weight.grad is not None:
                weight.grad = self._accelerator.reduce(weight.grad, reduction="mean")
        if args.max_grad_norm:
            torch.nn.utils.clip_grad_norm_(self._head.parameters(), args.max_grad_norm)

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Is called after a step: the trainer forgets the gradients of its model alone."""
        self._head.zero_grad()
