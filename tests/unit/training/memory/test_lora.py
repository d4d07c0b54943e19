"""Kinds of adapters: what is trained is what peft and Diffusers load."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from deployments.vllm.adapters.files import find_problems
from deployments.vllm.tiny_model import make_tiny_llama
from tests.support import training_images as images
from tests.support.image_models import make_cfg as make_serving_cfg
from tests.support.image_models import open_model
from tests.support.training_images import EDGE
from tests.support.training_runs import job_of, run, sections_of, sentences, write_rows
from truthgpt_serve.errors import ConfigError
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images.denoiser import prepare as prepare_images
from truthgpt_serve.training.job import TrainingJob
from truthgpt_serve.training.memory.lora import lora_arguments
from truthgpt_serve.training.text.prepare import prepare


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    return write_rows(file, [{"text": text} for text in sentences(16)])


def test_a_whole_alpha_is_written_as_one() -> None:
    lora = {"r": 4, "alpha": 16.0, "dropout": 0.0, "dora": False, "rslora": True}
    found = lora_arguments(lora)
    assert (type(found["lora_alpha"]), found["use_rslora"]) == (int, True)


KINDS: dict[str, tuple[dict[str, Any], str, int]] = {
    "dora": ({"dora": True}, "lora_magnitude_vector", 0),
    "rslora": ({"rslora": True}, "lora_A", 0),
    "modules_to_save": ({"modules_to_save": ["lm_head"]}, "lm_head", 1536 * 128),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_adapter_of_each_kind_is_what_peft_loads(
    kind: str, model: Path, texts: Path, tmp_path: Path
) -> None:
    given, weight, num_more = KINDS[kind]
    lora = {"enabled": True, "r": 4, "target_modules": ["q_proj", "v_proj"], **given}
    job = job_of(
        tmp_path / "run",
        sections_of(model, texts, training={"learning_rate": 0.01}, model_optim={"lora": lora}),
    )
    found = run(job)
    assert found[-1] < found[0]
    folder = job.folder / "model"
    saved = load_file(folder / "adapter_model.safetensors")
    assert any(weight in name for name in saved)
    assert prepare(job).num_trainable == sum(one.numel() for one in saved.values())
    assert sum(one.numel() for name, one in saved.items() if "lm_head" in name) == num_more
    base = AutoModelForCausalLM.from_pretrained(model)
    tokens = AutoTokenizer.from_pretrained(model)(sentences(1)[0], return_tensors="pt")
    with torch.no_grad():
        alone = base(**tokens, labels=tokens.input_ids).loss
        adapted = PeftModel.from_pretrained(base, folder).eval()
        assert adapted(**tokens, labels=tokens.input_ids).loss < alone - 0.01
    # What its documentation says of vLLM is what the family's own check says.
    assert bool(list(find_problems(folder, model, None))) == (kind != "rslora")


async def test_an_image_adapter_of_columns_and_lengths_is_what_diffusers_loads(
    tmp_path: Path,
) -> None:
    data = images.save_images(tmp_path / "images")
    folder = images.save_pipeline("sd", tmp_path / "sd")
    lora = {"enabled": True, "r": 4, "dropout": 0.0, "dora": True, "rslora": True}
    training = {"learning_rate": 1e-2, "max_steps": 3}
    cfg = images.make_cfg(folder, data, training=training, model_optim={"lora": lora})
    images.run(cfg, tmp_path / "run")
    result = tmp_path / "run/model"
    saved = load_file(result / "pytorch_lora_weights.safetensors")
    plan = prepare_images(TrainingJob(cfg, tmp_path / "run", None, 1))
    assert plan.num_trainable == sum(one.numel() for one in saved.values())
    pipeline = DiffusionPipeline.from_pretrained(folder)
    pipeline.load_lora_weights(str(result))
    (settings,) = pipeline.unet.peft_config.values()
    assert (settings.use_dora, settings.use_rslora) == (True, True)
    loaded = dict(pipeline.unet.named_parameters())
    for name, value in saved.items():
        parts = name.removeprefix("unet.").split(".")
        same = [one for key, one in loaded.items() if _is_same(key, parts)]
        assert len(same) == 1, name
        torch.testing.assert_close(same[0].detach(), value.to(same[0].dtype))
    inputs = {"prompt": "a red square", "steps": 2, "seed": 5, "width": EDGE, "height": EDGE}
    drawn = []
    for more in ({}, {"adapter": str(result)}):
        with open_model(make_serving_cfg(folder, model={"name_or_path": str(folder), **more})) as m:
            drawn.append(np.asarray((await m.infer(inputs))["image"], dtype=np.float32) / 255)
    pipeline.set_progress_bar_config(disable=True)
    (expected,) = pipeline(
        inputs["prompt"],
        num_inference_steps=2,
        width=EDGE,
        height=EDGE,
        generator=torch.Generator().manual_seed(5),
        output_type="np",
    ).images
    assert float(np.abs(drawn[1] - expected).max()) <= 2 / 255
    assert float(np.abs(drawn[1] - drawn[0]).max()) > 0.01
    bad = make_serving_cfg(
        folder, model={"name_or_path": str(folder), "adapter": str(tmp_path / "images")}
    )
    with pytest.raises(ConfigError, match=r"model.adapter: .*images"), open_model(bad):
        pass


def _is_same(key: str, parts: list[str]) -> bool:
    left = [part for part in key.split(".") if not part.startswith("default")]
    return left in (parts, [*parts, "weight"])


def test_whole_modules_beside_an_image_adapter_are_refused(tmp_path: Path) -> None:
    lora = {"enabled": True, "modules_to_save": ["conv_out"]}
    data = images.save_images(tmp_path / "images")
    cfg = images.make_cfg(tmp_path, data, model_optim={"lora": lora})
    with pytest.raises(TrainingError, match=r"lora.modules_to_save: .* \(remove it\)"):
        prepare_images(TrainingJob(cfg, tmp_path / "run", None, 1))


def test_modules_that_the_model_does_not_have_are_refused(
    model: Path, texts: Path, tmp_path: Path
) -> None:
    lora = {"enabled": True, "modules_to_save": ["no_such"]}
    job = job_of(tmp_path / "run", sections_of(model, texts, model_optim={"lora": lora}))
    with pytest.raises(TrainingError, match=r"lora.modules_to_save: .* no module 'no_such'"):
        prepare(job)
