"""The files of a run are found, also where the user has named Ray's folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.cli_service import Answer, run_cli, serve
from truthgpt_serve.cluster.environment_file import ENVIRONMENT_FILE, write_exports
from truthgpt_serve.cluster.private_files import LINK, RAY_FOLDER_VARIABLE

LOG = "ray/session_latest/logs/serve/replica_own_ModelReplica_ab12.log"


@pytest.mark.parametrize("named", [True, False])
def test_ray_writes_where_the_environment_of_the_run_says(tmp_path: Path, named: bool) -> None:
    run, private, own = tmp_path / ".run", tmp_path / "private", tmp_path / "own folder"
    run.mkdir()
    for folder in (private, own):
        (folder / LOG).parent.mkdir(parents=True)
        (folder / LOG).write_text(f"written in {folder.name}\n")
    (run / LINK).symlink_to(private)
    chosen = own if named else private
    write_exports(run / ENVIRONMENT_FILE, {RAY_FOLDER_VARIABLE: str(chosen), "B": "a\nb=c"})
    done = run_cli("logs", "own", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"written in {chosen.name}\n" in done.stdout


def test_a_damaged_environment_names_nothing(tmp_path: Path) -> None:
    run = tmp_path / ".run"
    (run / LINK / LOG).parent.mkdir(parents=True)
    (run / LINK / LOG).write_text("written\n")
    (run / ENVIRONMENT_FILE).write_bytes(b"export RAY_TMPDIR='\xff")
    assert "written" in run_cli("logs", "own", cwd=tmp_path).stdout


@pytest.mark.parametrize("relation", ["parent", "alias_of"])
def test_the_logs_of_an_adapter_or_alias_are_those_of_its_model(
    tmp_path: Path, relation: str
) -> None:
    (tmp_path / LOG).parent.mkdir(parents=True)
    (tmp_path / LOG).write_text("written\n")
    answers = {"/v1/models/other": Answer({"id": "other", relation: "own"})}
    with serve(answers) as service:
        env = {**service.env(), RAY_FOLDER_VARIABLE: str(tmp_path)}
        assert "written" in run_cli("logs", "other", env=env, cwd=tmp_path).stdout
        done = run_cli("logs", "nosuch", env=env, cwd=tmp_path)
    assert done.returncode == 1
    assert "there is no model 'nosuch'" in done.stderr
