"""Ray Serve comes without pandas into a worker, and everything else with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from truthgpt_serve.cluster.service import ray_worker

IMPORTS = """
import sys
from truthgpt_serve.cluster.service.ray_worker import USER, change_imports
change_imports()
change_imports()
import ray.serve
assert USER in sys.modules
assert "pandas" not in sys.modules
import pandas
assert pandas.DataFrame({"a": [1]}).shape == (1, 1)
"""


def test_ray_serve_is_imported_without_pandas() -> None:
    subprocess.run([sys.executable, "-c", IMPORTS], check=True, timeout=120)


def test_pandas_that_is_there_stays() -> None:
    program = "import pandas\n" + IMPORTS.replace('assert "pandas" not', 'assert "pandas"')
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_it_runs_ray_s_own_program() -> None:
    worker = ray_worker.find_worker()
    assert worker.name == "default_worker.py"
    command = [sys.executable, ray_worker.__file__, "--help"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "--raylet-name" in found.stdout
    assert found.stdout.startswith("usage: default_worker.py")


def test_what_lies_beside_it_is_not_for_the_models_to_import(tmp_path: Path) -> None:
    ray = tmp_path.joinpath("ray", *ray_worker.WORKER)
    ray.parent.mkdir(parents=True)
    (tmp_path / "ray" / "__init__.py").touch()
    ray.write_text("import sys\nprint(sys.path)\n")
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        f"sys.path.insert(0, {str(Path(ray_worker.__file__).parent)!r})\n"
        "from truthgpt_serve.cluster.service import ray_worker\nray_worker.main()"
    )
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert str(ray.parent) in found.stdout
    assert repr(str(Path(ray_worker.__file__).parent)) not in found.stdout
