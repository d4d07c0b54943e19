"""Ray's own functions take what `ray_idle` leaves out; Ray itself is asked, in a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from truthgpt_serve.cluster.environment_file import read_environment_file
from truthgpt_serve.cluster.service.ray_idle import MODULES_VARIABLE

RAY_ENV = Path(__file__).resolve().parents[4] / "configs" / "ray.env"
CHANGED = """
import inspect, sys
from truthgpt_serve.cluster.service import ray_worker
from truthgpt_serve.cluster.service.ray_idle import lighten_ray
import ray._private.services as services
commands = []
services.start_ray_process = lambda command, kind, **more: commands.append((kind, *command))
lighten_ray()
services.start_ray_process(["python", "dashboard.py"], "dashboard", fate_share=True)
services.start_ray_process(["python", "dashboard.py", "--modules-to-load=A"], "dashboard")
services.start_ray_process(["raylet"], "raylet")
print(*commands, sep="\\n")
import ray._private.node, ray._private.worker, ray.scripts.scripts
node = ray._private.parameter.RayParams()
assert node.worker_path == ray_worker.__file__ and node.no_monitor
assert ray._private.parameter.RayParams(ray_client_server_port=10001).ray_client_server_port is None
assert ray._private.parameter.RayParams(worker_path="other.py").worker_path == "other.py"
assert not ray._private.parameter.RayParams(autoscaling_config="scale.yaml").no_monitor
# Those who use them look them up where they were changed.
for module in (ray._private.worker, ray.scripts.scripts):
    assert "ray._private.parameter.RayParams(" in inspect.getsource(module), module
assert " = start_ray_process(" in inspect.getsource(services.start_api_server)
source = inspect.getsource(ray._private.node.Node)
assert "update_if_absent(" in source and "self._ray_params.worker_path" in source
assert "if not self._ray_params.no_monitor" in source
assert "if self._ray_params.ray_client_server_port:" in source
"""


@pytest.mark.parametrize(
    ("modules", "option"),
    [("ServeHead,JobHead", "--modules-to-load=ServeHead,JobHead"), ("all", "")],
)
def test_what_ray_starts(modules: str, option: str) -> None:
    env = {**os.environ, MODULES_VARIABLE: modules}
    command = [sys.executable, "-c", CHANGED]
    found = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stderr
    dashboard = ("dashboard", "python", "dashboard.py")
    assert found.stdout.splitlines() == [
        str((*dashboard, option) if option else dashboard),
        str((*dashboard, "--modules-to-load=A")),
        str(("raylet", "raylet")),
    ]


def test_ray_has_the_modules() -> None:
    folder = Path(ray.__file__).parent / "dashboard" / "modules"
    sources = [path.read_text() for path in folder.rglob("*_head.py")]
    for name in read_environment_file(RAY_ENV)[MODULES_VARIABLE].split(","):
        assert any(f"class {name}(SubprocessModule" in source for source in sources), name
    # Who submits a job asks for the head node, which is written by one of them.
    (node_head,) = [source for source in sources if "class NodeHead(" in source]
    assert "KV_HEAD_NODE_ID_KEY" in node_head


def test_another_release_is_named() -> None:
    program = (
        "import ray._private.services as services\ndel services.start_ray_process\n"
        "from truthgpt_serve.cluster.service.ray_idle import lighten_ray\nlighten_ray()"
    )
    command = [sys.executable, "-c", program]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "RayMovedError: ray._private.services.start_ray_process is gone" in found.stderr
