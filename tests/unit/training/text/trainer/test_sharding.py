from __future__ import annotations

import gc
import os
import resource
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from safetensors.torch import load_file
from torch import nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.fsdp import FSDPModule
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM, PreTrainedModel

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.training_runs import job_of, losses, sections_of, sentences, write_rows
from tests.support.training_workers import train_in_workers
from truthgpt_serve.config import load_model_config
from truthgpt_serve.errors import ConfigError
from truthgpt_serve.takeaway.errors import TakeawayError
from truthgpt_serve.takeaway.result import find_result
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.events import forget_after, read_events
from truthgpt_serve.training.job import TrainingJob
from truthgpt_serve.training.loops import find_loop, load_loop
from truthgpt_serve.training.monitor import RunMonitor
from truthgpt_serve.training.plan import memory_bytes
from truthgpt_serve.training.run_folder import SHARDS, checkpoints
from truthgpt_serve.training.text.trainer import sharding

pytestmark = pytest.mark.timeout(600)
NUM_STEPS = 10
LORA = {"lora": {"enabled": True, "r": 4, "target_modules": None}}
STEPS = {
    "max_steps": NUM_STEPS,
    "epochs": 100,
    "checkpoint_every": 8,
    "keep_checkpoints": 9,
    "grad_accum_steps": 1,
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("files")
    rows = [{"text": text} for text in sentences(24)]
    return make_tiny_llama(folder / "llama"), write_rows(folder / "texts.jsonl", rows)


def make_job(
    folder: Path, files: tuple[Path, Path], optim: dict[str, Any], **training: Any
) -> TrainingJob:
    return job_of(folder, sections_of(*files, training={**STEPS, **training}, model_optim=optim))


def whole_size(model: Any) -> int:
    return sum(weight.numel() for weight in model.parameters())


def held_size(model: Any) -> int:
    return sum(sharding.local_part(weight).numel() for weight in model.parameters())


class Measured(RunMonitor):
    """Notes how many numbers the model has, and how many of them this worker holds."""

    def begin(self, **given: Any) -> None:
        super().begin(**given)
        found = [one for one in gc.get_objects() if isinstance(one, FSDPModule)]
        whole, held = max((whole_size(model), held_size(model)) for model in found)
        (self._job.folder / f"held-{os.environ['RANK']}").write_text(f"{whole} {held}")


class KilledAt6(RunMonitor):
    """Rank 1 is killed within step 6."""

    def should_stop(self) -> bool:
        if os.environ["RANK"] == "1" and len(losses(self._job.folder)) == 5:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().should_stop()


class OutOfRoom(RunMonitor):
    """Rank 1 can write no large file; each worker notes what it ends of."""

    def begin(self, **given: Any) -> None:
        super().begin(**given)
        if os.environ["RANK"] == "1":
            resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        (self._job.folder / f"fault-{os.environ['RANK']}").write_text(repr(error[1]))


def logits(folder: Path, *, adapter: bool) -> torch.Tensor:
    kind: Any = AutoPeftModelForCausalLM if adapter else AutoModelForCausalLM
    model = kind.from_pretrained(folder / "model")
    with torch.no_grad():
        return model(input_ids=torch.arange(40).reshape(2, 20)).logits


@pytest.mark.long("starts two processes that train")
@pytest.mark.parametrize("optim", [{}, LORA], ids=["whole", "lora"])
def test_two_workers_hold_a_half_each_and_learn_what_two_whole_ones_learn(
    optim: dict[str, Any], files: tuple[Path, Path], tmp_path: Path
) -> None:
    plain = make_job(tmp_path / "plain", files, optim)
    sharded = make_job(tmp_path / "sharded", files, optim, fsdp=True)
    assert train_in_workers(plain) == [0, 0]
    assert train_in_workers(sharded, monitor_class=Measured) == [0, 0]
    assert len(losses(sharded.folder)) == NUM_STEPS
    assert losses(sharded.folder) == pytest.approx(losses(plain.folder), abs=1e-5)
    norms = [
        [event["grad_norm"] for event in read_events(job.folder) if event["event"] == "step"]
        for job in (sharded, plain)
    ]
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)
    for rank in range(2):
        whole, held = map(int, (sharded.folder / f"held-{rank}").read_text().split())
        assert held == pytest.approx(whole / 2, rel=0.01)
    found, expected = (logits(job.folder, adapter=bool(optim)) for job in (sharded, plain))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()))

    names = {file.name for file in (plain.folder / "model").iterdir()}
    assert {file.name for file in (sharded.folder / "model").iterdir()} == names


@pytest.mark.long("trains in processes that are killed")
def test_a_killed_run_goes_on_with_the_same_losses_to_the_same_best_weights(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    training = {
        "fsdp": "grad_op",
        "mixed_precision": "bf16",
        # It rises until the weights are lost: the first evaluation is the best, on any processor.
        "learning_rate": 0.1,
        "max_steps": 8,
        "checkpoint_every": 4,
        "scheduler": "constant_with_warmup",
        "warmup_ratio": 1.0,
        "eval_every": 4,
        "early_stopping_patience": 9,
    }
    optim = {**LORA, "gradient_checkpointing": True}
    whole = make_job(tmp_path / "whole", files, optim, **training)
    whole.cfg["data"]["eval_share"] = 0.2
    assert train_in_workers(whole) == [0, 0]
    cut = replace(whole, folder=tmp_path / "cut")
    assert 0 not in train_in_workers(cut, monitor_class=KilledAt6)
    assert not (cut.folder / "model").exists()
    last = checkpoints(cut.folder)[-1]
    assert last.name == "step-4"
    sizes = [file.stat().st_size for file in (last / SHARDS).glob("*.distcp")]
    assert len(sizes) == 2
    assert min(sizes) > max(sizes) / 2
    with pytest.raises(TakeawayError, match=r"in shards, of training.fsdp \(finish the run"):
        find_result(last)
    forget_after(cut.folder, 4)
    assert train_in_workers(replace(cut, checkpoint=last)) == [0, 0]
    assert losses(cut.folder) == losses(whole.folder)

    evaluated = [event for event in read_events(whole.folder) if event["event"] == "evaluated"]
    best = min(evaluated, key=lambda event: event["loss"])["step"]
    assert best == 4
    dcp_to_torch_save(whole.folder / "checkpoints" / f"step-{best}" / SHARDS, tmp_path / "best.pt")
    saved = torch.load(tmp_path / "best.pt", weights_only=True)["model"]
    for run in (whole.folder, cut.folder):
        result = load_file(run / "model" / "adapter_model.safetensors")
        assert len(result) == len(saved)
        for name, weight in saved.items():
            assert torch.equal(result[name.replace(".default", "")], weight)


def test_shards_that_one_worker_cannot_write_end_all_with_the_reason(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    job = make_job(tmp_path / "run", files, {}, fsdp=True, checkpoint_every=2)
    assert train_in_workers(job, monitor_class=OutOfRoom) == [1, 1]
    for rank in range(2):
        fault = (job.folder / f"fault-{rank}").read_text()
        assert fault.startswith("TrainingError")
        assert "the checkpoint of step 2 cannot be written: worker 1: " in fault
        assert "continue with --resume" in fault
    assert list((job.folder / "checkpoints").iterdir()) == []


def test_one_worker_has_nobody_to_share_with(files: tuple[Path, Path], tmp_path: Path) -> None:
    job = make_job(tmp_path / "run", files, {}, fsdp=True)
    loop = load_loop(find_loop(job.cfg))
    with pytest.raises(TrainingError, match=r"training.fsdp: .* there is one \(add --workers 2"):
        loop.prepare(job)


def test_the_plan_counts_a_share_and_what_is_gathered(
    files: tuple[Path, Path], tmp_path: Path
) -> None:
    found = {}
    for fsdp in (None, "full", "grad_op"):
        job = replace(make_job(tmp_path / f"{fsdp}", files, {}, fsdp=fsdp), num_workers=4)
        facts = load_loop(find_loop(job.cfg)).prepare(job)
        found[fsdp] = memory_bytes(facts) - facts.activation_bytes
        note = "weights, gradients and optimizer are sharded over 4 workers"
        assert (note in facts.notes) == (fsdp is not None)
    assert found["full"] <= found["grad_op"] < found[None]
    assert found["grad_op"] == pytest.approx(found[None] / 4 + found[None] / 4, rel=0.01)


def test_says_so_where_transformers_does_not_leave_sharded_models_alone(tmp_path: Path) -> None:
    """Fails where transformers has changed what `sharding` builds on: look at both there."""
    assert PreTrainedModel._is_distributed_loading_by_transformers is False
    with pytest.raises(TrainingError, match="its models have no"):
        sharding.leave_to_us(nn.Linear(2, 2))
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    try:
        model = nn.Sequential(nn.Linear(2, 2))
        training = {"fsdp": "full", "mixed_precision": "no"}
        wrapped = DistributedDataParallel(nn.Linear(2, 2))
        sharding.check_unwrapped(wrapped.module, wrapped)
        sharding.shard_model(model, training, on_cpu=True)
        sharding.check_unwrapped(model, model)
        with pytest.raises(TrainingError, match=r"transformers .* wraps a sharded model \("):
            sharding.check_unwrapped(model, wrapped)
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"training": {"method": "grpo", "reward": "a:b"}}, "training.fsdp: has no effect on"),
        ({"task": "image-generation"}, "training.fsdp: does not shard models of task: image"),
        ({"training": {"optimizer": "adafactor"}}, "training.optimizer: adafactor does not work"),
        ({"training": {"mixed_precision": "fp16"}}, "training.mixed_precision: fp16 does not"),
        ({"model_optim": {"quantization": "torchao-int8"}}, "quantized weights are not sharded"),
        (
            {"training": {"method": "reward"}, "model_optim": {"lora": {"enabled": True}}},
            "training.fsdp: is not for adapters of method: reward",
        ),
        ({"model_optim": {"compile": True}}, "model_optim.compile: a sharded model is not"),
        (
            {"training": {"samples": {"prompts": ["a"]}}},
            "training.samples: a sharded model makes no",
        ),
    ],
)
def test_what_is_not_sharded_is_refused(sections: dict[str, Any], message: str) -> None:
    training = {"fsdp": True, **sections.get("training", {})}
    with pytest.raises(ConfigError) as caught:
        load_model_config({**sections, "training": training}, place="test")
    assert message in str(caught.value)
