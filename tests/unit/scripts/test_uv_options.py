"""What a user has set for pip holds for uv too."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.uv_options import read_settings, translate

STRATEGY = ["--index-strategy", "unsafe-best-match"]


def list_settings(folder: Path, text: str, **variables: str) -> dict[str, str]:
    """Returns what pip says of a file of settings and of variables beyond the machine's."""
    machine = ask_pip(folder, "").items()
    return dict(ask_pip(folder, text, **variables).items() - machine)


def ask_pip(folder: Path, text: str, **variables: str) -> dict[str, str]:
    file = folder / "pip.conf"
    file.write_text(text)
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PIP_")}
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(
        command, env={**kept, "PIP_CONFIG_FILE": str(file), **variables}, capture_output=True,
        text=True, check=True, timeout=60,
    )  # fmt: skip
    return read_settings(done.stdout.splitlines())


def test_later_sections_count_more(tmp_path: Path) -> None:
    text = "[global]\nindex-url = https://a/simple\n[install]\nindex-url = https://b/simple\n"
    text += "[download]\nindex-url = https://c/simple\n"
    assert list_settings(tmp_path, text)["index-url"] == "https://b/simple"
    settings = list_settings(tmp_path, text, PIP_INDEX_URL="https://d/simple")
    assert settings["index-url"] == "https://d/simple"


def test_indexes_are_variables(tmp_path: Path) -> None:
    text = (
        "[global]\nindex-url = https://user:secret@own/simple\ncert = /ca.pem\ntimeout = 9\n"
        "extra-index-url =\n    https://a/simple\n    file:///b/simple\n"
        "find-links = /c /d\nconstraint = /limits.txt\nno-index = true\npre = no\n"
    )
    translated = translate(list_settings(tmp_path, text))
    assert translated is not None
    options, variables = translated
    assert variables == {
        "UV_DEFAULT_INDEX": "https://user:secret@own/simple",
        "UV_INDEX": "https://a/simple file:///b/simple",
        "SSL_CERT_FILE": "/ca.pem",
    }
    assert options[:2] == STRATEGY
    assert " ".join(options).count("--find-links") == 2
    assert options[options.index("--constraints") :][:2] == ["--constraints", "/limits.txt"]
    assert "--no-index" in options
    assert "--prerelease=allow" not in options
    assert "secret" not in " ".join(options)


@pytest.mark.parametrize(
    "line",
    ["no-binary = :all:", "client-cert = /x.pem", "find-links = https://a:b@c/", "target = /x"],
)
def test_what_uv_has_not_is_left_to_pip(tmp_path: Path, line: str) -> None:
    assert translate(list_settings(tmp_path, f"[global]\n{line}\n")) is None


def test_nothing_is_set(tmp_path: Path) -> None:
    assert translate(list_settings(tmp_path, "")) == (STRATEGY, {})
