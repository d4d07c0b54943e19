"""torch's store listens on the address that it names, as torch itself opens it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("torch")

PROGRAM = """
import os, socket, sys
from datetime import timedelta
import torch.distributed as dist
from truthgpt_serve.cluster.ports import free_port
from truthgpt_serve.cluster.torch_store import listen_on_named_address
if sys.argv[1] == "1":
    listen_on_named_address()
    listen_on_named_address()
port = free_port()
options = {"rank": 0, "world_size": 1, "timeout": timedelta(seconds=20)}
dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", **options)
dist.barrier()
print(*(socket.socket().connect_ex((host, port)) for host in ("127.0.0.1", "127.0.0.2")))
os._exit(0)
"""


@pytest.mark.parametrize(("switch", "elsewhere"), [("1", False), ("0", True)])
def test_it_listens_where_it_says(switch: str, elsewhere: bool) -> None:
    """The second case fails when torch does so by itself: then the module can go."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, switch],
        env={**os.environ, "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    named, other = map(int, done.stdout.split())
    assert named == 0
    assert (other == 0) == elsewhere
