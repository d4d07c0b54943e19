from __future__ import annotations

import subprocess
import sys
from typing import Any

import diffusers
import pytest

from deployments.hf_diffusers.choices import SCHEDULERS, scheduler_class
from deployments.hf_diffusers.config import FAMILY, DiffusersSettings, default_ongoing_requests
from tests.support.image_models import make_cfg
from truthgpt_serve.checks import check_model
from truthgpt_serve.config import load_model_config
from truthgpt_serve.contract import FamilySpec
from truthgpt_serve.registry import MODEL_REGISTRY


def faults_of(engine: dict[str, Any] | None = None, **sections: Any) -> list[str]:
    model = {"name_or_path": "org/model", **sections.pop("model", {})}
    hardware = {"gpus": 0, **sections.pop("hardware", {})}
    config = load_model_config(
        {
            "task": "image-generation",
            "model": model,
            "hardware": hardware,
            "serving": {"engine": engine or {}},
            **sections,
        },
        place="x.yaml",
    )
    return [str(fault) for fault in check_model(config)]


def test_the_family_is_found_by_its_entry_point() -> None:
    found: FamilySpec = MODEL_REGISTRY.find("hf-diffusers")
    assert found is FAMILY


def test_a_configuration_is_checked_without_the_engine() -> None:
    program = (
        "import sys\n"
        "from truthgpt_serve.checks import check_model\n"
        "from truthgpt_serve.config import load_model_config\n"
        "config = load_model_config({'task': 'image-generation',"
        " 'model': {'name_or_path': 'org/model'}})\n"
        "assert check_model(config) == []\n"
        "print(sorted({'torch', 'diffusers', 'transformers', 'numpy', 'PIL'} & set(sys.modules)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("engine", "place", "message"),
    [
        ({"max_step": 5}, "max_step", "did you mean serving.engine.max_steps?"),
        ({"default_steps": 200}, "default_steps", "200 is more than max_steps, which is 150"),
        (
            {"max_steps": 9, "quality_steps": {"high": 10}},
            "quality_steps.high",
            "10 is more than max_steps, which is 9",
        ),
        ({"default_size": "500x512"}, "default_size", "is not in multiples of 8"),
        ({"default_size": "512"}, "default_size", "512"),
        ({"default_size": "4096x4096"}, "default_size", "more pixels than max_pixels, 2097152"),
        ({"min_edge": 5000}, "min_edge", "5000 is more than max_edge, which is 4096"),
        ({"schedulers": ["eulr"]}, "schedulers", "did you mean 'euler'?"),
        ({"batch_buckets": [4, 2]}, "batch_buckets", "write [2, 4]"),
        ({"offload": "disk"}, "offload", "must be one of none, model, group"),
        ({"offload": "model"}, "offload", "moves weights to a GPU"),
        ({"gguf_file": __file__}, "gguf_file", "has no effect without"),
        ({"controlnet": "/nowhere"}, "controlnet", "'/nowhere' does not exist"),
        ({"vae": "./nowhere"}, "vae", "'./nowhere' does not exist"),
        ({"max_rows": 0}, "max_rows", "at least 1"),
    ],
)
def test_a_wrong_setting_is_named(engine: dict[str, Any], place: str, message: str) -> None:
    faults = faults_of(engine)
    assert len(faults) == 1, faults
    assert f"serving.engine.{place}" in faults[0]
    assert message in faults[0]


@pytest.mark.parametrize(
    ("sections", "place", "message"),
    [
        ({"model_optim": {"attention": "xformer"}}, "attention", "did you mean 'xformers'?"),
        ({"model_optim": {"attention": "xformers"}}, "attention", "needs an NVIDIA GPU"),
        ({"model_optim": {"attention": "flash"}}, "attention", "write auto or sdpa"),
        ({"model_optim": {"quantization": "torchao-int9"}}, "quantization", "did you mean 'tor"),
        ({"model_optim": {"quantization": "bitsandbytes-4bit"}}, "quantization", "an NVIDIA GPU"),
        ({"model_optim": {"quantization": "gguf"}}, "quantization", "serving.engine.gguf_file"),
        ({"hardware": {"gpus": 2}}, "hardware.gpus", "raise serving.num_replicas"),
        ({"model": {"name_or_path": "a/b.safetensors"}}, "name_or_path", "serving.engine.pipeline"),
        ({"model": {"name_or_path": None}}, "name_or_path", "is required"),
    ],
)
def test_a_wrong_section_is_named(sections: dict[str, Any], place: str, message: str) -> None:
    faults = faults_of(**sections)
    assert len(faults) == 1, faults
    assert place in faults[0]
    assert message in faults[0]


def test_a_gpu_may_have_what_a_cpu_may_not() -> None:
    for section in ({"attention": "xformers"}, {"quantization": "bitsandbytes-4bit"}):
        assert faults_of(hardware={"gpus": 1}, model_optim=section) == []


def test_text_is_not_a_task_of_the_family() -> None:
    config = load_model_config(
        {"model": {"family": "hf-diffusers", "name_or_path": "org/model"}}, place="x.yaml"
    )
    assert "cannot do 'text-generation'" in str(check_model(config)[0])


def test_every_setting_is_explained() -> None:
    assert all(field.description for field in DiffusersSettings.model_fields.values())


def test_every_scheduler_name_is_a_class_of_diffusers() -> None:
    for name, cls in SCHEDULERS.items():
        assert isinstance(getattr(diffusers, cls), type), name
        assert scheduler_class(name) == scheduler_class(cls) == cls
    assert scheduler_class("euler2") is None


def test_default_number_of_requests() -> None:
    assert FAMILY.max_ongoing_requests is default_ongoing_requests
    assert default_ongoing_requests(make_cfg("org/model")) == 32
    assert default_ongoing_requests(make_cfg("org/model", {"step_cache": "first_block"})) == 8
