"""A check that takes long says what is being imported, and has no limit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from truthgpt_serve.cluster.ports import free_port
from truthgpt_serve.cluster.service.progress import telling_progress

ROOT = Path(__file__).resolve().parents[4]
RUNNER = ROOT / "scripts" / "serve_run.py"
LIMIT_S = 90
ENDLESS = "import threading\n\n\ndef work():\n    threading.Event().wait()\n\n\nwork()\n"


def test_lines_name_the_innermost_import(tmp_path: Path) -> None:
    module = tmp_path / "inner_of_the_test.py"
    module.write_text("import inner_of_the_test_gate\n")
    gate = tmp_path / "inner_of_the_test_gate.py"
    gate.write_text("import builtins\nbuiltins.heard_of_the_test.wait(60)\n")
    program = f"""
import builtins, sys, threading
from truthgpt_serve.cluster.service.progress import telling_progress
builtins.heard_of_the_test = threading.Event()
def write(line):
    print(line)
    if "gate.py" in line:
        builtins.heard_of_the_test.set()
sys.path.insert(0, {str(tmp_path)!r})
with telling_progress(0.05, write):
    import inner_of_the_test
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=LIMIT_S, check=True
    )
    assert f"waiting: importing {gate}, line 2 (" in done.stdout


def test_silence_unless_asked_for() -> None:
    lines: list[str] = []
    with telling_progress(0.01, lines.append):
        while not lines:
            time.sleep(0.01)
    assert lines[0].startswith("waiting: ")
    before = len(lines)
    with telling_progress(None, lines.append):
        time.sleep(0.05)
    assert len(lines) == before


@contextmanager
def running(tmp_path: Path, text: str) -> Iterator[subprocess.Popen[str]]:
    """Runs the check of `make serve` with a module of this text, and a line every half second."""
    (tmp_path / "module_of_a_user.py").write_text(text)
    config = tmp_path / "serve.yaml"
    config.write_text(
        f"http_options: {{port: {free_port()}}}\napplications:\n- name: m\n"
        "  route_prefix: /models/m\n  import_path: truthgpt_serve.app:model\n"
        "  args: {model: {family: x, import: module_of_a_user}}\n"
    )
    program = tmp_path / "runner.py"
    program.write_text(RUNNER.read_text().replace("PROGRESS_S = 10.0", "PROGRESS_S = 0.5"))
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(
        [sys.executable, "-P", str(program), str(config), "http://127.0.0.1:1"],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_an_endless_import_is_named_and_ends_with_an_interrupt(tmp_path: Path) -> None:
    with running(tmp_path, ENDLESS) as process:
        assert process.stdout is not None
        place = f"importing {tmp_path / 'module_of_a_user.py'}, line 8"
        line = next(line for line in process.stdout if place in line)
        assert line.startswith("[serve] checking: importing ")
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert "Traceback" not in rest


def test_a_module_that_kills_the_check_is_told(tmp_path: Path) -> None:
    text = "import os\n\nos.kill(os.getpid(), 11)\n"
    with running(tmp_path, text) as process:
        output, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 2
    assert "was ended by signal 11 (Segmentation fault)" in output
    assert "Traceback" not in output


def test_an_import_that_holds_everything_up_is_told(tmp_path: Path) -> None:
    text = "import re\n\nre.match('(a*)*b', 'a' * 29)\n"  # one call that keeps the lock
    with running(tmp_path, text) as process:
        assert process.stdout is not None
        line = next(line for line in process.stdout if "no word for" in line)
        assert line.startswith("[serve] checking: no word for ")
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
