"""Which quantized weights an adapter can be trained on, and what each needs."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.wording import suggest

PLACE = "model_optim.quantization"


@dataclass(frozen=True, slots=True)
class Quantization:
    """One value of `model_optim.quantization` that an adapter is trained on.

    Attributes:
        package: What it needs.
        bits: Of each number of a linear layer.
        weight_bytes: Memory of such a number, its scale included.
    """

    package: str
    bits: int
    weight_bytes: float


_FOUR_BITS = Quantization("bitsandbytes", 4, 0.52)
QUANTIZATION: Mapping[str, Quantization] = {
    "bitsandbytes-4bit": _FOUR_BITS,
    "bitsandbytes": _FOUR_BITS,  # vLLM's name of the same
    "bitsandbytes-8bit": Quantization("bitsandbytes", 8, 1.0),
    "torchao-int8": Quantization("torchao", 8, 1.0),
}


def find_quantization(
    cfg: Mapping[str, Any], known: Collection[str] = tuple(QUANTIZATION)
) -> Quantization | None:
    """Returns the quantization of a run's weights, after checking that it can be trained on.

    Args:
        cfg: The configuration.
        known: What the loop can load.

    Raises:
        TrainingError: It is none that an adapter is trained on, there is no adapter, or its
            package is missing.
    """
    optim = cfg["model_optim"]
    name = optim["quantization"]
    if name is None:
        return None
    if name not in known:
        fix = f"{suggest(name, known)}, or remove it for training"
        raise TrainingError(f"{PLACE}: nothing is trained on weights in {name} ({fix})")
    if not optim["lora"]["enabled"]:
        fix = "set model_optim.lora.enabled: true, or remove it"
        raise TrainingError(f"{PLACE}: weights in {name} are not trained themselves ({fix})")
    found = QUANTIZATION[name]
    if importlib.util.find_spec(found.package) is None:
        package = found.package
        message = f"{PLACE}: {name} needs the package {package}, which is not installed"
        raise TrainingError(f"{message} (pip install {package})")
    return found


def quantizer(library: Any, quantization: Quantization, compute: Any) -> Any:
    """Returns the settings that quantize linear layers while a model is loaded.

    Args:
        library: `transformers` or `diffusers`: both have classes of the same names.
        quantization: What to do.
        compute: torch's number format of the computation.
    """
    if quantization.package == "torchao":
        kinds = importlib.import_module("torchao.quantization")
        return library.TorchAoConfig(kinds.Int8WeightOnlyConfig(version=2))
    if quantization.bits == 8:
        return library.BitsAndBytesConfig(load_in_8bit=True)
    return library.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute,
    )


def quantized_note(name: str, quantization: Quantization) -> str:
    """Returns the line of the plan."""
    return f"weights of linear layers are kept in {quantization.bits} bits ({name}); they stay"
