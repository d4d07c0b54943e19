"""What files and pages show of a configuration: variables by name, secrets not at all."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from truthgpt_serve.config import load_model_config
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.job import TrainingJob
from truthgpt_serve.training.launch import record_failure
from truthgpt_serve.training.run_record import check_same, create_record
from truthgpt_serve.training.shown_config import HIDDEN, hide_secrets, is_secret_name

VALUES = {"RATE": "5e-5", "SECRET": "sk-4711-hidden"}
SECTIONS: dict[str, Any] = {
    "model": {"name_or_path": "org/model", "adapter": "${ADAPTER:-org/adapter}"},
    "training": {"learning_rate": "${RATE}", "reward": "a:b", "method": "grpo"},
    "data": {"dataset": "${DATA}"},
    "serving": {
        "engine": {"api_key": "plain-4711", "hf_token": "${SECRET}", "note": "costs $${5}"},
        "aliases": ["x-${SECRET}"],
    },
}


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    file = tmp_path / "rows-of-mine.jsonl"
    file.touch()
    monkeypatch.setenv("DATA", str(file))
    for name, value in VALUES.items():
        monkeypatch.setenv(name, value)
    return str(file)


def job_of(folder: Path, **changes: Any) -> TrainingJob:
    file = folder / "a.yaml"
    file.write_text(yaml.safe_dump({**SECTIONS, **changes}))
    config = load_model_config(file)
    return TrainingJob(config.to_cfg(), folder, None, 1, hidden=config.source.hidden)


def test_a_record_shows_no_value_of_a_variable_and_no_secret(data: str, tmp_path: Path) -> None:
    job = job_of(tmp_path)
    record = create_record(job)
    written = json.dumps(record)
    assert not [
        value for value in (data, *VALUES.values(), "5e-05", "plain-4711") if value in written
    ]
    config = record["config"]
    assert config["data"]["dataset"] == "${DATA}"
    assert config["training"]["learning_rate"] == "${RATE}"
    assert config["model"]["adapter"] == ["org/adapter"]
    assert config["serving"]["aliases"] == ["x-${SECRET}"]
    engine = config["serving"]["engine"]
    assert engine == {"api_key": HIDDEN, "hf_token": "${SECRET}", "note": "costs $${5}"}
    assert sorted(record["variables"]) == ["data.dataset", "training.learning_rate"]
    assert job.cfg["serving"]["engine"]["api_key"] == "plain-4711"


def test_another_value_of_a_variable_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = create_record(job_of(tmp_path))
    check_same(tmp_path, old, create_record(job_of(tmp_path)))
    monkeypatch.setenv("SECRET", "sk-else")
    check_same(tmp_path, old, create_record(job_of(tmp_path)))
    monkeypatch.setenv("RATE", "6e-5")
    with pytest.raises(TrainingError, match=r"training\.learning_rate: '\$\{RATE\}' stands for"):
        check_same(tmp_path, old, create_record(job_of(tmp_path)))


def test_a_failure_shows_no_value_of_a_variable(data: str, tmp_path: Path) -> None:
    job = replace(job_of(tmp_path), folder=tmp_path / "run")
    error = TrainingError(f"{data}: cannot be read after step 5")
    record_failure(job.folder, error, job.hidden)
    log = (job.folder / "logs" / "events.jsonl").read_text()
    assert "${DATA}: cannot be read after step 5" in log


@pytest.mark.parametrize("name", ["api_key", "apiKey", "HF_TOKEN", "password", "authorization"])
def test_names_of_secrets(name: str) -> None:
    assert is_secret_name(name)
    assert hide_secrets({name: {"x": ["y", 3, ""]}}) == {name: {"x": [HIDDEN, 3, ""]}}


@pytest.mark.parametrize("name", ["tokenizer", "max_tokens_total_count", "api_key_env", "monkey"])
def test_names_of_no_secrets(name: str) -> None:
    if name == "max_tokens_total_count":
        assert hide_secrets({name: 3}) == {name: 3}
    else:
        assert hide_secrets({name: "x"}) == {name: "x"}


def test_addresses_lose_their_users() -> None:
    assert hide_secrets({"at": "https://me:pw@host/x"}) == {"at": f"https://{HIDDEN}@host/x"}
