"""Where the file with the usage lies where nothing names one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from truthgpt_serve.usage.place import find_file


def test_the_file_that_is_named(tmp_path: Path) -> None:
    assert find_file(str(tmp_path / "keys.yaml"), "/data/u.sqlite") == Path("/data/u.sqlite")


def test_beside_the_keys_where_that_can_be_written(tmp_path: Path) -> None:
    assert find_file(str(tmp_path / "keys.yaml"), None) == tmp_path / "keys.usage.sqlite"


def test_else_in_the_state_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = tmp_path / "secret" / "keys.yaml"  # no such folder, as root may write any
    env = {"XDG_STATE_HOME": str(tmp_path / "state"), "HOME": "/nowhere"}
    found = find_file(str(keys), None, env)
    assert found.parent == tmp_path / "state" / "truthgpt"
    assert found.name.startswith("keys-")
    assert found.name.endswith(".usage.sqlite")
    assert find_file(str(keys.parent / "b" / "keys.yaml"), None, env) != found
    home = Path("/nowhere/.local/state/truthgpt")
    for value in ("", "relative"):
        assert find_file(str(keys), None, {**env, "XDG_STATE_HOME": value}).parent == home
    if os.geteuid():
        keys.parent.mkdir(0o500)
        assert find_file(str(keys), None, env) == found


@pytest.mark.parametrize("is_there", [False, True])
def test_a_folder_that_only_another_user_may_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_there: bool
) -> None:
    """Also with a file in it that this user may write: SQLite needs more than that one."""
    keys, file = tmp_path / "keys.yaml", tmp_path / "keys.usage.sqlite"
    if is_there:
        file.touch()
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) == file)  # root may write all
    found = find_file(str(keys), None, {"XDG_STATE_HOME": "/state"})
    assert found.parent == Path("/state/truthgpt")
