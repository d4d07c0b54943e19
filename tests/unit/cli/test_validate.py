"""`truthgpt validate` from a shell: what it imports. Its rules are tested in `unit/validate`."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import sys
from truthgpt_serve.cli.main import main

main(["validate", "configs/serve.yaml"], standalone_mode=False)
assert "ray.serve.schema" in sys.modules
print("before:", "pandas" in sys.modules)
import pandas
print("then:", pandas.DataFrame({"a": [1]}).shape)
"""


def test_a_check_leaves_pandas_out_and_a_class_may_still_import_it() -> None:
    """A third of the time of the command was the import of pandas, by Ray Serve."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.splitlines()[-2:] == ["before: False", "then: (1, 1)"], done.stdout
