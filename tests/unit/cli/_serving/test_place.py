"""`truthgpt serve-line --serve`: what is written into which file, and that nothing is lost."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
import yaml
from click.testing import CliRunner, Result

from tests.support.cli_service import Answer, serve
from truthgpt_serve.cli import main
from truthgpt_serve.cli._serving import service as serving
from truthgpt_serve.cli._serving.place import place
from truthgpt_serve.cluster.private_files import TOKEN_FILE
from truthgpt_serve.config import load_model_config
from truthgpt_serve.training.run import find_served
from truthgpt_serve.training.run_folder import write_json
from truthgpt_serve.validate import validate_file


@pytest.fixture
def folder(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the configurations that ship, and two runs."""
    shutil.copytree(root / "configs", tmp_path / "configs")
    (tmp_path / "models").symlink_to(root / "models")
    make_run(tmp_path / "runs" / "whole", root / "models" / "story", "org/base")
    make_run(
        tmp_path / "runs" / "moral",
        root / "models" / "story-moral",
        str(tmp_path / "models" / "story"),
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_run(run: Path, result: Path, base: str) -> None:
    run.mkdir(parents=True)
    (run / "model").symlink_to(result)
    config = load_model_config({"run_name": "tales", "model": {"name_or_path": base}}, place="x")
    write_json(run / "run.json", {"config": config.to_cfg()})


def call(*arguments: str, **environ: str | None) -> Result:
    none = {"RAY_DASHBOARD_ADDRESS": None, "RAY_AUTH_TOKEN": None}
    return CliRunner().invoke(main, ["serve-line", *arguments], env={**none, **environ})


def names(serve_file: str = "configs/serve.yaml") -> list[str]:
    return [one["name"] for one in yaml.safe_load(Path(serve_file).read_text())["applications"]]


def test_a_model_becomes_an_application_and_comments_stay(folder: Path) -> None:
    before = Path("configs/serve.yaml").read_text()
    done = call("runs/whole", "--serve", "tales")
    assert done.exit_code == 0, done.output
    assert "added tales to configs/serve.yaml" in done.stdout
    assert "no service runs here; start it: make serve" in done.stdout
    assert names()[-2:] == ["tales", "router"]
    after = Path("configs/serve.yaml").read_text().splitlines()
    assert [line for line in before.splitlines() if line not in after] == []
    assert not validate_file("configs/serve.yaml").faults
    twice = call("runs/whole", "--serve", "tales")
    assert twice.exit_code == 0  # the first try may have ended before it was applied
    assert "configs/serve.yaml has tales already" in twice.stdout
    assert Path("configs/serve.yaml").read_text().splitlines() == after
    other = call("runs/moral", "--serve", "shapes")
    assert other.exit_code == 1
    assert "has an application 'shapes' already: choose another name" in other.stderr


def test_an_adapter_goes_to_the_model_that_is_served(folder: Path) -> None:
    file = Path("configs/models/story.yaml")
    before = file.read_text()
    done = call("runs/moral", "--serve", "new")
    assert done.exit_code == 0, done.output
    assert f"added new to {file}, as an adapter of story" in done.stdout
    added = [line for line in file.read_text().splitlines() if line not in before.splitlines()]
    assert [line.strip() for line in added] == ["- name: new", f"path: {folder}/runs/moral/model"]
    assert not validate_file("configs/serve.yaml").faults
    assert "has an adapter or alias 'new' already" in call("runs/moral", "--serve", "new").stderr
    assert "'story-moral' already" in call("runs/whole", "--serve", "story-moral").stderr


def test_an_adapter_whose_model_is_not_served_brings_it(folder: Path) -> None:
    text = Path("configs/serve.yaml").read_text().replace("models/story.yaml", "models/echo.yaml")
    Path("configs/serve.yaml").write_text(text)
    done = call("runs/moral", "--serve", "new")
    assert done.exit_code == 0, done.output
    assert "new-base" in names()
    entry = yaml.safe_load(Path("configs/serve.yaml").read_text())["applications"][-2]
    adapters = [{"name": "new", "path": f"{folder}/runs/moral/model"}]
    assert entry["args"]["serving"]["adapters"] == adapters


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("runs/whole", "--serve", "a/b"), "contains a slash"),
        (("runs/whole", "--serve", "models"), "is a path of the router"),
        (("runs/whole", "--serve", "x", "--serve-file", "no.yaml"), "no.yaml cannot be read"),
        (("runs/whole", "--serve", "x", "--serve-file", "bad.yaml"), "bad.yaml: it is not YAML"),
        (("runs/whole", "--serve-file", "bad.yaml"), "--serve-file needs --serve NAME"),
        (("runs/none", "--serve", "x"), "runs/none: there is no run"),
        (("runs/new",), "has no result yet"),
    ],
)
def test_what_cannot_be_is_one_line_and_changes_nothing(
    folder: Path, arguments: tuple[str, ...], message: str
) -> None:
    Path("bad.yaml").write_text("applications: [")
    Path("runs/new").mkdir()
    shutil.copy("runs/whole/run.json", "runs/new/run.json")
    before = Path("configs/serve.yaml").read_bytes()
    done = call(*arguments)
    assert done.exit_code != 0
    assert message in done.stderr
    assert Path("configs/serve.yaml").read_bytes() == before


def test_a_result_that_would_be_a_fault_is_taken_back(folder: Path) -> None:
    before = Path("configs/serve.yaml").read_bytes()
    (folder / "runs" / "whole" / "model").unlink()
    (folder / "runs" / "whole" / "model").mkdir()  # without weights
    done = call("runs/whole", "--serve", "tales")
    assert done.exit_code == 2
    assert Path("configs/serve.yaml").read_bytes() == before


def test_a_fault_that_another_application_has_already_is_taken_back_too(folder: Path) -> None:
    file = Path("configs/serve.yaml")
    (folder / "runs" / "whole" / "model").unlink()
    (folder / "runs" / "whole" / "model").mkdir()  # without weights
    entry = find_served(Path("runs/whole"), "first").application
    applications = yaml.safe_load(file.read_text())
    applications["applications"].insert(0, entry)
    file.write_text(yaml.safe_dump(applications))
    before = file.read_bytes()
    known = [fault.place for fault in validate_file(str(file)).faults]
    assert known
    done = call("runs/whole", "--serve", "tales")
    assert done.exit_code == 2
    assert file.read_bytes() == before
    assert not any(line.startswith(f"{place}:") for line in done.stderr.splitlines()
                   for place in known)  # fmt: skip


def test_what_another_changes_meanwhile_stays(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = find_served(Path("runs/whole"), "tales")
    file = Path("configs/serve.yaml")

    def validate_and_edit(path: str) -> Any:
        file.write_text(f"{file.read_text()}# another's\n")
        return validate_file(path)

    monkeypatch.setattr("truthgpt_serve.cli._serving.place.validate_file", validate_and_edit)
    with pytest.raises(click.ClickException, match="has just been changed: try again"):
        place(file, served)
    assert file.read_text().endswith("# another's\n")
    assert "tales" not in names()


def test_a_file_that_cannot_be_written_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve = Path("configs/serve.yaml")
    before = serve.read_text()
    # As for any other user: root may write everywhere.
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    assert "cannot be written" in call("runs/whole", "--serve", "tales").stderr
    assert serve.read_text() == before


def test_the_token_of_the_service_here_goes_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / TOKEN_FILE).write_text("t-here")
    local = SimpleNamespace(run_folder=tmp_path)
    monkeypatch.setattr(serving, "find_local", lambda: local)
    for address, sent in (
        ("", {"authorization": "Bearer t-here"}),
        ("http://127.0.0.1:8265", {"authorization": "Bearer t-here"}),
        ("http://[::1]:8265", {"authorization": "Bearer t-here"}),
        ("http://other.example:8265", {}),
        ("https://other.example/ray", {}),
    ):
        service = serving.find_service({"RAY_DASHBOARD_ADDRESS": address} if address else {})
        assert service is not None
        assert service._headers == sent


def test_without_serve_the_lines_are_printed(folder: Path) -> None:
    done = call("runs/moral")
    assert done.exit_code == 0, done.output
    first, second, *_ = yaml.safe_load_all(done.stdout.replace("# or, where", "---\n# or, where"))
    assert first[0]["name"] == "tales-base"
    assert second["serving"]["adapters"][0]["name"] == "tales"


PATH = "/api/serve/applications/"


def test_what_runs_is_changed_only_by_its_own_file(folder: Path) -> None:
    running = {"applications": {name: {"status": "RUNNING"} for name in (*names(), "foreign")}}
    with serve({PATH: Answer(running)}) as ray:
        done = call("runs/whole", "--serve", "tales", RAY_DASHBOARD_ADDRESS=ray.url)
    assert done.exit_code == 1
    assert "the service runs another Serve file: it has foreign" in done.stderr
    assert [request.method for request in ray.requests] == ["GET"]
    assert "tales" not in names()


def test_the_file_is_applied_with_the_token_and_the_model_waited_for(folder: Path) -> None:
    states = iter(["NOT_STARTED", "DEPLOYING", "RUNNING"])

    def answer(request: Any) -> Answer:
        if request.method == "PUT":
            return Answer({})
        return Answer({"applications": {"story": {"status": next(states)}}})

    with serve({PATH: answer}) as ray:
        environ = {"RAY_DASHBOARD_ADDRESS": ray.url, "RAY_AUTH_TOKEN": "t-1"}
        done = call("runs/moral", "--serve", "new", **environ)
    assert done.exit_code == 0, done.output
    assert done.stdout.endswith("story runs\n")
    (put,) = [request for request in ray.requests if request.method == "PUT"]
    assert put.headers["authorization"] == "Bearer t-1"
    story = next(one for one in put.body["applications"] if one["name"] == "story")
    assert story["runtime_env"]["env_vars"]  # else Ray would find its entry unchanged


def test_a_service_that_refuses_or_a_model_that_fails_is_told(folder: Path) -> None:
    with serve({PATH: Answer({}, 401)}) as ray:
        done = call("runs/whole", "--serve", "a", RAY_DASHBOARD_ADDRESS=ray.url)
    assert "refused: 401" in done.stderr
    failed = {"applications": {"b": {"status": "DEPLOY_FAILED", "message": "no\nroom"}}}
    with serve({PATH: Answer(failed)}) as ray:
        done = call("runs/whole", "--serve", "b", RAY_DASHBOARD_ADDRESS=ray.url)
    assert "b does not start (no room)" in done.stderr
    gone = call("runs/whole", "--serve", "c", RAY_DASHBOARD_ADDRESS=ray.url)
    assert "does not answer" in gone.stderr
    assert {"a", "b", "c"} & set(names()) == {"b"}  # what is not asked for is not written
