"""The examples of docs/python.md run as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

HELLO = "{'text': ' hello hello hello hello', 'finish_reason': 'length'}"
THERE = HELLO.replace("hello", "there")
STREAM = " hello hello hello hello"


def test_the_examples_run(root: Path, tmp_path: Path) -> None:
    page = (root / "docs" / "python.md").read_text()
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    printed = []
    for number, example in enumerate(examples):
        program = tmp_path / f"example{number}.py"
        program.write_text(example)
        done = subprocess.run(
            [sys.executable, program],
            capture_output=True,
            text=True,
            timeout=60,
            cwd=root,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, ""), example
        printed.append(done.stdout)
    whole = f"{HELLO}\n{STREAM}\n"
    assert printed == [f"{HELLO}\n", whole, f"[{HELLO}, {THERE}]\n{STREAM}\n"]
