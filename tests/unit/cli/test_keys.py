"""`truthgpt keys`: a key is printed once, and nothing else is on stdout."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.support.cli_service import environment, run_cli
from truthgpt_serve.access.credentials import digest
from truthgpt_serve.access.key_file import read_keys
from truthgpt_serve.wording import KEY_PREFIX


def run(folder: Path, *arguments: str, **env: str) -> CompletedProcess[str]:
    return run_cli("keys", *arguments, env={"TRUTHGPT_CONFIG_DIR": str(folder), **env})


def test_a_keys_life(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    done = run(
        tmp_path, "add", "team", "--models", "story, sh*", "--requests-per-minute", "60",
        "--tokens-per-minute", "1000", "--image-megapixel-steps-per-minute", "2.5",
        "--max-concurrent", "4", "--priority", "-3", "--weight", "2.5",
        "--expires", "90d", "--admin",
    )  # fmt: skip
    assert (done.returncode, done.stdout.count("\n")) == (0, 1)
    key = done.stdout.strip()
    assert key.startswith(KEY_PREFIX)
    assert str(path) in done.stderr
    assert key not in done.stderr
    (entry,) = read_keys(path).keys
    assert entry.sha256 == digest(key.encode()).hex()
    assert (entry.models, entry.requests_per_minute) == (["story", "sh*"], 60)
    assert (entry.priority, entry.admin, entry.max_concurrent) == (-3, True, 4)
    assert entry.weight == 2.5
    rotated = run(tmp_path, "rotate", "team", "--grace", "5").stdout.strip()
    assert rotated != key
    listed = run(tmp_path, "list").stdout
    assert "team (admin)" in listed
    assert "story, sh*" in listed
    assert "rotated" in listed
    (shown,) = json.loads(run(tmp_path, "list", "--json").stdout)["keys"]
    assert shown["name"] == "team"
    hashes = [entry.sha256, digest(rotated.encode()).hex()]
    assert not [value for value in (key, rotated, *hashes) if value in f"{shown}{listed}"]
    assert run(tmp_path, "revoke", "team").stdout == ""
    assert read_keys(path).keys == []


def test_limits_are_listed_in_full(tmp_path: Path) -> None:
    run(
        tmp_path, "add", "team", "--tokens-per-minute", "1234567",
        "--image-megapixel-steps-per-minute", "2.5",
    )  # fmt: skip
    listed = " ".join(run(tmp_path, "list", COLUMNS="300").stdout.split())
    assert "1,234,567 tokens/min, 2.5 megapixel-steps/min" in listed


def test_an_empty_file_is_told_from_one_without_keys(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    for text, is_empty in (("", True), ("# a comment\n", True), ("keys: []\n", False)):
        path.write_text(text)
        done = run(tmp_path, "list", "--json")
        assert json.loads(done.stdout) == {"keys": []}
        assert ("is empty: a service that runs keeps the keys" in done.stderr) == is_empty


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["add", "a b"], "name: 'a b' is not usable here"),
        (["add", "a", "--expires", "soon"], "'soon' is no moment"),
        (["add", "a", "--expires", "2020-01-31"], "2020-01-31T00:00:00Z is in the past"),
        (["add", "a", "--expires", "9999-12-31T23:59:59-14:00"], "beyond the years 1 to 9999"),
        (["add", "a", "--requests-per-minute", "0"], "requests_per_minute: must be at least 1"),
        (["add", "a", "--models", ","], "models: must not be empty"),
        (["add", "a", "--models", "a?"], "models[0]: is no pattern of model names"),
        (["revoke", "nobody"], "has no key 'nobody'"),
        (["rotate", "nobody"], "has no key 'nobody'"),
        (["rotate", "there", "--grace", "-1"], "--grace"),
        (["add", "there"], "has a key 'there' already"),
    ],
)
def test_faults(tmp_path: Path, arguments: list[str], message: str) -> None:
    run(tmp_path, "add", "there")
    before = (tmp_path / "keys.yaml").read_bytes()
    done = run(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert (tmp_path / "keys.yaml").read_bytes() == before


def test_which_file(tmp_path: Path) -> None:
    folder, other = tmp_path / "configs", tmp_path / "other.yaml"
    folder.mkdir()
    args = "{auth: {keys_file: named.yaml}}"
    (folder / "serve.yaml").write_text(f"applications: [{{name: router, args: {args}}}]")
    run(folder, "add", "a")
    assert (folder / "named.yaml").is_file()
    run(folder, "add", "a", TRUTHGPT_KEYS_FILE=str(other))
    assert other.is_file()
    run(folder, "add", "a", "--file", str(tmp_path / "third.yaml"))
    assert (tmp_path / "third.yaml").is_file()
    (folder / "serve.yaml").write_text("applications: 3")
    run(folder, "add", "a")
    assert (folder / "keys.yaml").is_file()


def test_a_key_that_cannot_be_shown_is_said_to_be_lost(tmp_path: Path) -> None:
    run(tmp_path, "add", "team")
    command = [sys.executable, "-m", "truthgpt_serve.cli", "keys", "rotate", "team"]
    env = environment({"TRUTHGPT_CONFIG_DIR": str(tmp_path)})
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=env, check=False
        )
    assert done.returncode == 1
    assert (
        "the key of team is made and lost (make another: truthgpt keys rotate team" in done.stderr
    )
