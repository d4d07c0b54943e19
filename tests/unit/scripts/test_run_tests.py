"""`scripts/run_tests.py` on small folders, with the real pytest."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.run_tests import MAX_AGAIN, narrow

ROOT = Path(__file__).resolve().parents[3]
PASSED, FAILED, NOTHING_CHOSEN = 0, 1, 5
NOTE = """
import os, pytest
def note(name):
    with open("notes", "a") as file:
        file.write(f"{name} {os.environ.get('PYTEST_XDIST_WORKER', 'alone')}\\n")
"""
WAIT = "import time; time.sleep(0.2)"
BESIDE_FAILS = "assert 'PYTEST_XDIST_WORKER' not in os.environ"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nmarkers =\n    alone: apart\n    long: slow\n    odd: some\n"
    )
    for name in ("unit", "serve"):
        (tmp_path / "tests" / name).mkdir(parents=True)
    write(tmp_path, "unit", "test_u", "pass")
    write(tmp_path, "serve", "test_s", "pass")
    write(tmp_path, "serve", "test_t", "pass", "@pytest.mark.alone")
    return tmp_path


def write(folder: Path, kind: str, name: str, body: str, mark: str = "") -> None:
    text = f"{NOTE}\n{mark}\ndef {name}():\n    note({name!r})\n    {body}\n"
    (folder / "tests" / kind / f"{name}.py").write_text(text)


def run_tests(folder: Path, *arguments: str) -> tuple[int, str, list[str]]:
    """Returns the status, what was printed, and which tests ran, in order, with their worker."""
    notes = folder / "notes"
    notes.unlink(missing_ok=True)
    # No plugins but this one: the others are slow to import.
    loaded = "xdist.plugin" + (",slipcover.pytest_plugin" if "--coverage" in arguments else "")
    plugins = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_PLUGINS": loaded}
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")} | plugins
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "run_tests.py"), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    ran = notes.read_text().splitlines() if notes.exists() else []
    return done.returncode, done.stdout + done.stderr, ran


def test_marked_tests_run_after_the_others(folder: Path) -> None:
    status, output, ran = run_tests(folder)
    assert status == PASSED, output
    assert sorted(line.split()[0] for line in ran[:2]) == ["test_s", "test_u"]
    assert ran[2:] == ["test_t alone"]
    assert {line.split()[1][:2] for line in ran[:2]} == {"gw"}


def test_what_runs_last_imports_no_other_module(folder: Path) -> None:
    module = folder / "tests" / "serve" / "test_s.py"
    module.write_text(f"{module.read_text()}\nnote('import')\n")
    status, output, ran = run_tests(folder, "--only", "serve")
    assert status == PASSED, output
    assert sorted(line.split()[0] for line in ran[:-1]) == ["import"] * 3 + ["test_s"]
    assert "import alone" not in ran
    assert ran[-1] == "test_t alone"


@pytest.mark.long("runs pytest many times")
def test_two_processes_of_three_have_services_while_there_are_other_tests(folder: Path) -> None:
    for kind, name in (("unit", "test_u"), ("serve", "test_s")):
        (folder / "tests" / kind / f"{name}.py").unlink()
    (folder / "tests" / "support").mkdir()
    for name in ("serve/conftest.py", "support/shell.py"):
        shutil.copy(ROOT / "tests" / name, folder / "tests" / name)
    for number in range(4):
        # A process gets its next module while it runs the last two tests of one.
        for kind in ("unit", "serve"):
            tests = "".join(f"\ndef test_{at}():\n    run()\n" for at in range(4))
            module = folder / "tests" / kind / f"test_{kind}_{number}.py"
            module.write_text(f"{NOTE}\ndef run():\n    note({kind!r})\n    {WAIT}\n{tests}")
    status, output, ran = run_tests(folder, "--workers", "3", "--", "-k", "not test_t")
    assert status == PASSED, output
    kinds: dict[str, set[str]] = {}
    for line in ran[:15]:  # later there are no modules with services left
        kind, worker = line.split()
        kinds.setdefault(worker, set()).add(kind)
    assert sorted(map(sorted, kinds.values())) == [["serve"], ["serve"], ["unit"]], ran


@pytest.mark.long("runs pytest many times")
def test_what_fails_beside_others_runs_once_more_alone(folder: Path) -> None:
    write(folder, "unit", "test_a", BESIDE_FAILS)
    status, output, ran = run_tests(folder, "--only", "unit")
    assert status == PASSED, output
    assert "failed beside others, passed alone: tests/unit/test_a.py::test_a" in output
    assert ran[2:] == ["test_a alone"]

    write(folder, "serve", "test_b", BESIDE_FAILS)
    status, output, ran = run_tests(folder, "--only", "serve")
    assert status == PASSED, output
    assert "failed beside others, passed alone: tests/serve/test_b.py::test_b" in output
    assert ran[2:] == ["test_b alone", "test_t alone"]

    write(folder, "serve", "test_c", "assert False")
    status, output, ran = run_tests(folder, "--only", "serve")
    assert status == FAILED
    assert "failed beside others, passed alone: tests/serve/test_b.py::test_b" in output
    assert "failed beside others, failed alone: tests/serve/test_c.py::test_c" in output
    status, output, ran = run_tests(folder, "--only", "serve", "--", "--lf")
    assert [line.split()[0] for line in ran] == ["test_c", "test_c", "test_t"]


@pytest.mark.long("runs pytest many times")
def test_no_second_run_for_many_failures_nor_after_a_stop(folder: Path) -> None:
    for number in range(MAX_AGAIN + 1):
        write(folder, "serve", f"test_{number}", BESIDE_FAILS)
    status, output, ran = run_tests(folder, "--only", "serve")
    assert status == FAILED
    assert "once more" not in output
    assert len(ran) == MAX_AGAIN + 3
    status, output, _ = run_tests(folder, "--only", "serve", "--", "-x")
    assert status not in (PASSED, NOTHING_CHOSEN)
    assert "once more" not in output


def test_failures_without_a_second_run(folder: Path) -> None:
    """Those of marked ones, and where nothing ran beside them."""
    write(folder, "serve", "test_t", "assert False", "@pytest.mark.alone")
    status, output, _ = run_tests(folder)
    assert status == FAILED
    assert "once more" not in output
    write(folder, "serve", "test_s", "assert False")
    status, output, ran = run_tests(folder, "--only", "serve", "--workers", "0")
    assert status == FAILED
    assert ran == ["test_s alone", "test_t alone"]


@pytest.mark.long("runs pytest many times")
def test_a_choice_of_tests(folder: Path) -> None:
    """By words or marks; that a pass has none of them is no failure."""
    assert run_tests(folder, "--", "-k", "test_t")[::2] == (PASSED, ["test_t alone"])
    assert run_tests(folder, "--only", "serve", "--", "-k", "nothing")[::2] == (NOTHING_CHOSEN, [])
    write(folder, "serve", "test_o", "pass", "@pytest.mark.odd")
    status, output, ran = run_tests(folder, "--only", "serve", "--", "-m", "odd or alone")
    assert status == PASSED, output
    assert [line.split()[0] for line in ran] == ["test_o", "test_t"]
    assert narrow(["-v", "-m", "a or b", "-x"], "alone") == ["-v", "-x", "-m", "(a or b) and alone"]


def test_long_tests_are_left_out_when_asked_for(folder: Path) -> None:
    write(folder, "unit", "test_v", "pass", "@pytest.mark.long")
    assert len(run_tests(folder, "--only", "unit")[2]) == 2
    status, output, ran = run_tests(folder, "--only", "unit", "--short")
    assert status == PASSED, output
    assert [line.split()[0] for line in ran] == ["test_u"]
    given = ("--only", "unit", "--short", "--", "-m", "long or odd")
    assert run_tests(folder, *given)[::2] == (NOTHING_CHOSEN, [])


def test_how_much_of_the_code_the_tests_without_ray_run(folder: Path) -> None:
    for name in ("truthgpt_serve", "deployments"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
    code = "def double(x):\n    if x:\n        return 2 * x\n    return 0\n"
    (folder / "truthgpt_serve" / "code.py").write_text(code)
    body = "import sys; sys.path.insert(0, '.'); from truthgpt_serve.code import double"
    write(folder, "unit", "test_u", f"{body}; assert double(2) == 4")
    status, output, ran = run_tests(folder, "--only", "unit", "--coverage")
    assert status == PASSED, output
    assert "the tests without Ray run 75.0 % of the product's lines" in output
    assert ran[0].startswith("test_u gw")
    write(folder, "unit", "test_v", "assert False")
    assert run_tests(folder, "--only", "unit", "--coverage")[0] == FAILED


def test_asserts_are_rewritten_once_for_all_processes(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    module = folder / "tests" / "unit" / "test_v.py"
    module.write_text("def test_v():\n    value = 41\n    assert value + 1 == 43\n")
    broken = folder / "tests" / "unit" / "test_w.py"
    broken.write_text("def (:\n")
    given = ["--debug=trace.log", f"--ignore={broken}"]
    status, output, _ = run_tests(folder, "--only", "unit", "--workers", "0", "--", *given)
    assert status == FAILED, output
    assert "assert (41 + 1) == 43" in output
    trace = (folder / "trace.log").read_text()
    assert f"found cached rewritten pyc for {module} " in trace
