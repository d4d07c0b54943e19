"""LoRA adapters per request: mixed in one forward, as the stock pipeline with `set_adapters`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from peft import LoraConfig

from deployments.hf_diffusers.stepping import EngineOptions, JobOptions, StepEngine
from tests.support.images_engine import (
    TOLERANCE,
    create_inputs,
    difference,
    run_stock,
)
from tests.support.tiny_images import create_pipeline

NAMES = ("ink", "chalk")

PLANS: list[dict[str, float]] = [
    {},
    {"ink": 1.0},
    {"ink": 0.4},
    {"chalk": -0.7},
    {"ink": 0.5, "chalk": 0.8},
    {"chalk": 0.0},
    {},
]


def _with_adapters(kind: str = "sd", **more: Any) -> Any:
    """A pipeline with two adapters on its denoiser, one of them on its text encoder too."""
    pipeline = create_pipeline(kind)
    denoiser = pipeline.components.get("unet") or pipeline.components["transformer"]
    targets = ["to_q", "to_v", "to_out.0", "conv1"]
    for index, name in enumerate(NAMES):
        torch.manual_seed(index)
        config = LoraConfig(
            r=2 + index, lora_alpha=3, target_modules=targets, init_lora_weights=False, **more
        )
        denoiser.add_adapter(config, adapter_name=name)
        if name == "ink":  # the other leaves the text encoder alone
            text = LoraConfig(r=2, target_modules=["q_proj", "fc1"], init_lora_weights=False)
            pipeline.text_encoder.add_adapter(text, adapter_name=name)
    pipeline.disable_lora()
    return pipeline


def _stock(pipeline: Any, inputs: dict[str, Any], adapters: Mapping[str, float]) -> Any:
    if adapters:
        pipeline.enable_lora()
        pipeline.set_adapters(list(adapters), list(adapters.values()))
    else:
        pipeline.disable_lora()
    if "ink" not in adapters:
        pipeline.text_encoder.disable_adapters()
    return run_stock(pipeline, inputs)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
@pytest.mark.parametrize(("kind", "mode"), [("sd", "auto"), ("flux", "auto"), ("sd", "exclusive")])
def test_mixed_adapters_give_the_stock_images(kind: str, mode: Any) -> None:
    ours, stock = _with_adapters(kind), _with_adapters(kind)
    requests = [create_inputs(seed, kind=kind, steps=3 + seed % 2) for seed in range(len(PLANS))]
    expected = [_stock(stock, inputs, plan) for inputs, plan in zip(requests, PLANS, strict=True)]
    assert float((expected[0] - _stock(stock, requests[0], PLANS[1])).abs().max()) > 1e-2
    with StepEngine() as engine:
        engine.add_pipeline("p", ours, adapters=NAMES, mode=mode)
        jobs = [
            engine.submit("p", inputs, JobOptions(adapters=plan))
            for inputs, plan in zip(requests, PLANS, strict=True)
        ]
        for job, image, plan in zip(jobs, expected, PLANS, strict=True):
            assert difference(job, image) <= TOLERANCE, plan
        statistics = engine.statistics()
    denoiser = "p.unet" if kind == "sd" else "p.transformer"
    if mode == "auto":
        assert statistics.forwards[denoiser] <= 8  # seven requests of 3 or 4 steps
        assert statistics.solo_fallbacks == 0


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_adapters_that_cannot_share_a_forward_are_grouped() -> None:
    ours, stock = _with_adapters(use_dora=True), _with_adapters(use_dora=True)
    requests = [create_inputs(seed, steps=3) for seed in range(len(PLANS))]
    expected = [_stock(stock, inputs, plan) for inputs, plan in zip(requests, PLANS, strict=True)]
    with StepEngine() as engine:
        engine.add_pipeline("p", ours, adapters=NAMES)
        jobs = [
            engine.submit("p", inputs, JobOptions(adapters=plan))
            for inputs, plan in zip(requests, PLANS, strict=True)
        ]
        for job, image, plan in zip(jobs, expected, PLANS, strict=True):
            assert difference(job, image) <= TOLERANCE, plan
        statistics = engine.statistics()
    # Six different sets of adapters: a forward each and step.
    assert statistics.forwards["p.unet"] == 6 * 3
    assert statistics.calls["p.unet"] == 7 * 3


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_a_module_that_folds_its_rows_runs_adapters_one_after_the_other() -> None:
    ours, stock = _with_adapters(), _with_adapters()

    def fold(module: Any, args: Any) -> Any:
        return (args[0].reshape(1, -1, args[0].shape[-1]),)

    def unfold(module: Any, args: Any, output: Any) -> Any:
        return output.reshape(-1, 64, output.shape[-1])

    def add_hooks(pipeline: Any) -> None:
        projection = pipeline.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_out[0]
        projection.register_forward_pre_hook(fold)
        projection.register_forward_hook(unfold)

    add_hooks(stock)
    plans = [{"ink": 1.0}, {"chalk": 1.0}]
    requests = [create_inputs(seed, steps=3) for seed in range(2)]
    expected = [_stock(stock, inputs, plan) for inputs, plan in zip(requests, plans, strict=True)]
    with StepEngine() as engine:
        engine.add_pipeline("p", ours, adapters=NAMES)
        add_hooks(ours)  # after the engine's own, so that it sees one folded row
        jobs = [
            engine.submit("p", inputs, JobOptions(adapters=plan))
            for inputs, plan in zip(requests, plans, strict=True)
        ]
        for job, image in zip(jobs, expected, strict=True):
            assert difference(job, image) <= TOLERANCE
        assert engine.statistics().solo_fallbacks == 0
        assert engine.statistics().forwards["p.unet"] == 6


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_a_lora_scale_in_the_inputs_runs_exclusively_and_right() -> None:
    ours, stock = _with_adapters(), _with_adapters()
    inputs = create_inputs(1, cross_attention_kwargs={"scale": 0.3})
    with StepEngine(EngineOptions(max_ongoing=4)) as engine:
        engine.add_pipeline("p", ours, adapters=NAMES)
        plain = engine.submit("p", create_inputs(2), JobOptions(adapters={"ink": 1.0}))
        scaled = engine.submit("p", inputs, JobOptions(adapters={"ink": 1.0}))
        assert difference(scaled, _stock(stock, inputs, {"ink": 1.0})) <= TOLERANCE
        assert difference(plain, _stock(stock, create_inputs(2), {"ink": 1.0})) <= TOLERANCE
        assert engine.statistics().exclusive_runs == 1


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_closing_gives_the_adapters_back() -> None:
    ours, stock = _with_adapters(), _with_adapters()
    ours.set_adapters(["ink"], [1.0])
    with StepEngine() as engine:
        engine.add_pipeline("p", ours, adapters=NAMES)
        engine.submit("p", create_inputs(1), JobOptions(adapters={"chalk": 0.5})).result(60)
    inputs = create_inputs(3)
    expected = _stock(stock, inputs, {"ink": 1.0})
    ours.enable_lora()
    assert float((run_stock(ours, inputs) - expected).abs().max()) <= TOLERANCE


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_an_active_adapter_that_was_not_named_is_refused() -> None:
    ours = _with_adapters()
    ours.enable_lora()
    ours.set_adapters(["chalk"], [1.0])
    with StepEngine() as engine, pytest.raises(ValueError, match="'chalk'"):
        engine.add_pipeline("p", ours, adapters=["ink"])


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`:UserWarning")
def test_a_weight_that_is_not_finite_is_refused() -> None:
    with StepEngine() as engine:
        engine.add_pipeline("p", _with_adapters(), adapters=NAMES)
        with pytest.raises(ValueError, match="ink"):
            engine.submit("p", create_inputs(1), JobOptions(adapters={"ink": float("nan")}))
