"""The device and the number format of a model of torch."""

from __future__ import annotations

import pytest
import torch

from truthgpt_serve.device import choose_device, choose_dtype, describe_backend
from truthgpt_serve.errors import ConfigError


def test_the_device_and_the_number_format() -> None:
    cpu = torch.device("cpu")
    assert choose_device({"gpus": 0, "device": "auto"}, torch) == cpu
    assert choose_dtype("auto", torch.float16, cpu, torch) is torch.float32
    assert choose_dtype("auto", torch.bfloat16, cpu, torch) is torch.bfloat16
    assert choose_dtype("auto", None, cpu, torch) is torch.float32
    assert choose_dtype("float16", torch.float32, cpu, torch) is torch.float16
    if not torch.cuda.is_available():
        assert choose_device({"gpus": "auto", "device": "auto"}, torch) == cpu
        with pytest.raises(ConfigError, match=r"hardware.gpus: 1 asks for a GPU, and torch"):
            choose_device({"gpus": 1, "device": "auto"}, torch)


def test_the_backend_as_the_card_says_it() -> None:
    optim = {"quantization": None, "compile": False, "dtype": "auto"}
    assert describe_backend(torch.device("cpu"), torch.bfloat16, "sdpa", optim) == {
        "device": "cpu",
        "dtype": "bfloat16",
        "attention": "sdpa",
        "quantization": None,
        "compile": False,
    }
