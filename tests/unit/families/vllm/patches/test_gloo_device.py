"""Process groups with one device, made and used by PyTorch in two processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
from datetime import timedelta
from pathlib import Path
import torch
import torch.distributed as dist
from deployments.vllm.patches import gloo_device

rank, file = int(sys.argv[1]), sys.argv[2]
gloo_device.share()
gloo_device.share()
dist.init_process_group(
    "gloo", init_method=f"file://{file}", rank=rank, world_size=2, timeout=timedelta(seconds=90)
)
groups = [dist.new_group([0, 1], backend="gloo") for _ in range(3)]
for number, group in enumerate(groups):
    found = torch.tensor([rank + number])
    dist.all_reduce(found, group=group)
    assert found.item() == 1 + 2 * number, found
told = ["news"] if rank == 0 else [None]
dist.broadcast_object_list(told, src=0, group=groups[-1])
assert told == ["news"]
names = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
assert names.count("gloo_tcp_loop") == 1, names
for group in groups:
    dist.destroy_process_group(group)
dist.destroy_process_group()
"""
WITHOUT_DEVICES = """
import torch.distributed.distributed_c10d as module
class ProcessGroupGloo: pass
module.ProcessGroupGloo = ProcessGroupGloo
from deployments.vllm.patches import gloo_device
gloo_device.share()
"""


def test_groups_of_two_processes_share_a_device(tmp_path: Path) -> None:
    commands = [
        [sys.executable, "-c", PROGRAM, str(rank), str(tmp_path / "store")] for rank in (0, 1)
    ]
    environment = {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1", "PATH": ""}
    running = [
        subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
        for command in commands
    ]
    for process in running:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


def test_another_pytorch_is_refused() -> None:
    command = [sys.executable, "-c", WITHOUT_DEVICES]
    found = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert "RuntimeError: PyTorch's ProcessGroupGloo has no create_device" in found.stderr
