"""The command itself: its help and unknown subcommands."""

from __future__ import annotations

import subprocess
import sys

from tests.support.cli_service import environment, run_cli
from tests.support.terminal import on_terminal

HEAVY = ("pydantic", "yaml", "httpx", "rich", "ray", "numpy", "aiohttp")


def test_help_imports_nothing_that_takes_time() -> None:
    program = (
        "import sys; from truthgpt_serve.cli import main; "
        "main(['--help'], standalone_mode=False); "
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.strip() == "[]"
    assert "Exit codes: 0 is success" in done.stdout
    assert "validate" in done.stdout


def test_an_unknown_command_is_named_with_the_nearest() -> None:
    done = run_cli("valdate")
    assert done.returncode == 2
    assert "there is no command 'valdate': did you mean validate?" in done.stderr


def test_ctrl_c_has_the_exit_code_of_an_interrupted_program_and_ctrl_d_has_not() -> None:
    command = [sys.executable, "-m", "truthgpt_serve.cli", "init", "--from", "x"]
    with on_terminal(*command, env=environment({})) as shown:
        shown.wait_for("name of the model")
        shown.interrupt("stopped")
        assert shown.end() == 130
    with on_terminal(*command, env=environment({})) as shown:
        shown.wait_for("name of the model")
        shown.type("\x04")
        shown.wait_for("Aborted!")
        assert shown.end() == 1
