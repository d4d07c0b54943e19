from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.hf_transformers.embedding.pooling import normalize
from deployments.hf_transformers.embedding.pooling import pool as served_pool
from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.tiny_transformers.models import make_tiny_encoder
from tests.support.training_runs import job_of, run, sections_of, write_rows
from truthgpt_serve.config import load_model_config
from truthgpt_serve.runner import build_model
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.events import forget_after, read_events
from truthgpt_serve.training.loops import find_loop, load_loop
from truthgpt_serve.training.run_folder import checkpoints
from truthgpt_serve.training.serving import serving_of
from truthgpt_serve.training.text.labels.embedding import freeze_unused
from truthgpt_serve.training.text.labels.pooling import POOLINGS, pool
from truthgpt_serve.training.text.models import load_model

FAMILY = "hf-transformers"
ANIMALS = ("cat", "dog")
CUSTOM = {"engine": {"pipeline_task": "text-classification"}}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_encoder(tmp_path_factory.mktemp("model") / "encoder")


@pytest.fixture(scope="module")
def decoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model") / "llama")


def pairs(kind: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for n in range(16):
        one, other = ANIMALS[n % 2], ANIMALS[1 - n % 2]
        if kind == "cosine":
            first, second = f"the {one} {n}", f"a {(one, other)[n % 3 == 0]} runs"
            rows.append({"sentence1": first, "sentence2": second, "score": float(n % 3 != 0)})
        else:
            rows.append({"anchor": f"the {one} {n}", "positive": f"a small {one}"})
            if kind == "triplet":
                rows[-1]["negative"] = f"a small {other}"
    return rows


def classes(kind: str = "text") -> list[dict[str, Any]]:
    names: tuple[Any, ...] = ANIMALS if kind == "text" else (0, 1)
    return [{"text": f"the {ANIMALS[n % 2]} {n}", "label": names[n % 2]} for n in range(16)]


def sections(
    model: Path, rows: list[dict[str, Any]], folder: Path, method: str, **given: Any
) -> dict[str, Any]:
    training = {"method": method, "max_steps": 24, "checkpoint_every": 12, "train_batch_size": 4}
    training |= {"grad_accum_steps": 1, "learning_rate": 2e-3, **given.pop("training", {})}
    found = sections_of(
        model,
        write_rows(folder / "rows.jsonl", rows),
        training=training,
        data={"eval_share": 0.2},
        **given,
    )
    found["task"] = "embedding" if method == "embedding" else "custom"
    found["model"]["family"] = FAMILY
    return {**found, "serving": CUSTOM} if method == "classification" else found


def served(given: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Returns what `truthgpt serve-line` prints, for a model in this process."""
    record = {"config": load_model_config(given, place="test").to_cfg()}
    args = serving_of(record, folder / "model").args
    return {**args, "hardware": {"gpus": 0}}


def check_resume(given: dict[str, Any], folder: Path) -> list[float]:
    job = job_of(folder, given)
    whole = run(job)
    steps = [event for event in read_events(job.folder) if event["event"] == "step"]
    assert len(whole) == 24
    assert all(step["num_units"] > 0 for step in steps)
    assert any(event["event"] == "evaluated" for event in read_events(job.folder))
    checkpoint = checkpoints(job.folder)[0]
    assert checkpoint.name == "step-12"
    forget_after(job.folder, 12)
    assert run(job_of(job.folder, given, checkpoint=checkpoint)) == whole
    return whole


@pytest.mark.parametrize("loss", ["ranking", "triplet", "cosine"])
def test_an_embedding_is_learned_resumed_and_served(
    loss: str, encoder: Path, tmp_path: Path
) -> None:
    more = {"embedding_loss": loss} if loss == "triplet" else {}
    given = sections(encoder, pairs(loss), tmp_path, "embedding", training=more)
    found = check_resume(given, tmp_path / "run")
    assert sum(found[-6:]) < sum(found[:6])
    with build_model(FAMILY, served(given, tmp_path / "run")) as model:
        texts = ("the cat 3", "a small cat", "a small dog")
        vectors = [torch.as_tensor(model.infer({"text": t})["embedding"]) for t in texts]
    assert all(abs(float(vector.norm()) - 1) < 1e-4 for vector in vectors)
    if loss != "cosine":
        assert float(vectors[0] @ vectors[1]) > float(vectors[0] @ vectors[2])


def test_a_decoder_becomes_an_embedding_by_an_adapter(decoder: Path, tmp_path: Path) -> None:
    lora = {"lora": {"enabled": True, "r": 4}}
    given = sections(decoder, pairs("ranking"), tmp_path, "embedding", model_optim=lora)
    check_resume(given, tmp_path / "run")
    folder = tmp_path / "run" / "model"
    assert not (folder / "adapter_config.json").exists()
    assert '"pooling_mode_lasttoken": true' in (folder / "1_Pooling" / "config.json").read_text()
    with build_model(FAMILY, served(given, tmp_path / "run")) as model:
        assert len(model.infer({"text": "the cat"})["embedding"]) == 128


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_all_that_is_trained_gets_a_gradient(lora: bool, encoder: Path, tmp_path: Path) -> None:
    optim = {"lora": {"enabled": lora}}
    given = sections(encoder, pairs("ranking"), tmp_path, "embedding", model_optim=optim)
    model, _ = load_model(job_of(tmp_path / "run", given).cfg)
    freeze_unused(model)
    ids = torch.tensor([[2, 5, 6, 3]])
    mask = torch.ones_like(ids)
    hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
    pool("mean", hidden, mask).sum().backward()
    waiting = [n for n, w in model.named_parameters() if w.requires_grad and w.grad is None]
    assert waiting == []


@pytest.mark.parametrize("pooling", POOLINGS)
def test_texts_are_pooled_as_the_service_pools_them(pooling: str) -> None:
    torch.manual_seed(0)
    hidden = torch.randn(3, 5, 8)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]])
    wanted = normalize(served_pool([pooling], hidden, mask))
    assert torch.allclose(pool(pooling, hidden, mask), wanted, atol=1e-6)


@pytest.mark.parametrize("kind", ["text", "number"])
def test_classes_are_learned_resumed_and_served(kind: str, encoder: Path, tmp_path: Path) -> None:
    given = sections(encoder, classes(kind), tmp_path, "classification")
    found = check_resume(given, tmp_path / "run")
    assert sum(found[-6:]) < sum(found[:6])
    with build_model(FAMILY, served(given, tmp_path / "run")) as model:
        answer = model.infer({"text": "the cat 3", "top_k": 2})
    names = {"text": set(ANIMALS), "number": {"0", "1"}}[kind]
    assert {one["label"] for one in answer} == names


def test_a_decoder_becomes_a_classifier_by_an_adapter(decoder: Path, tmp_path: Path) -> None:
    lora = {"lora": {"enabled": True, "r": 4}}
    given = sections(decoder, classes(), tmp_path, "classification", model_optim=lora)
    check_resume(given, tmp_path / "run")
    with build_model(FAMILY, served(given, tmp_path / "run")) as model:
        assert model.infer({"text": "the cat 3"})[0]["label"] in ANIMALS


@pytest.mark.parametrize(
    ("method", "row", "message"),
    [
        ("classification", {"text": "a cat", "label": None}, "'label'"),
        ("classification", {"text": "a cat", "label": [1]}, "'label' must be text or a whole"),
        ("embedding", {"anchor": "a cat", "positive": " "}, "'positive' is empty"),
        ("embedding", {"sentence1": "a", "sentence2": "b", "score": 5}, "from -1 to 1"),
    ],
)
def test_a_bad_row_is_named(
    method: str, row: dict[str, Any], message: str, encoder: Path, tmp_path: Path
) -> None:
    scored = "sentence1" in row
    rows = classes() if method == "classification" else pairs("cosine" if scored else "ranking")
    job = job_of(tmp_path / "run", sections(encoder, [*rows, row], tmp_path, method))
    with pytest.raises(TrainingError, match=message):
        load_loop(find_loop(job.cfg)).prepare(job)


@pytest.mark.parametrize(
    ("method", "rows", "training", "message"),
    [
        ("classification", [{"text": "a", "label": "x"}] * 8, {}, "1 different values"),
        ("embedding", pairs("ranking"), {"embedding_loss": "triplet"}, "a negative in every row"),
        ("embedding", pairs("ranking"), {"embedding_loss": "cosine"}, "needs the columns"),
        ("embedding", pairs("ranking"), {"train_batch_size": 1}, "write at least 2"),
    ],
)
def test_data_that_does_not_fit_the_method_is_refused(
    method: str,
    rows: list[dict[str, Any]],
    training: dict[str, Any],
    message: str,
    encoder: Path,
    tmp_path: Path,
) -> None:
    given = sections(encoder, rows, tmp_path, method, training=training)
    job = job_of(tmp_path / "run", given)
    with pytest.raises(TrainingError, match=message):
        load_loop(find_loop(job.cfg)).prepare(job)
