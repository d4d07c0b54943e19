"""What a service that was killed leaves, and the next one removes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from truthgpt_serve.cluster.service.leftovers import tidy


def test_what_earlier_runs_left_is_removed(tmp_path: Path) -> None:
    sessions = tmp_path / "ray"
    for day in range(1, 6):
        (sessions / f"session_2026-01-0{day}" / "logs").mkdir(parents=True)
    (sessions / "session_latest").symlink_to(sessions / "session_2026-01-05")
    (tmp_path / "tmp" / "folder").mkdir(parents=True)
    (tmp_path / "tmp" / ".hidden").touch()
    (tmp_path / "tmp" / "link").symlink_to(sessions)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "workers-1.sock"))
    before = sorted(tmp_path.rglob("*"))
    environment = {**os.environ, "RAY_TMPDIR": str(tmp_path)}
    command = [sys.executable, "-c", "import time; print(flush=True); time.sleep(100)"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE) as by_hand:
        try:
            assert by_hand.stdout is not None
            by_hand.stdout.readline()
            tidy(tmp_path)
            assert sorted(tmp_path.rglob("*")) == before
        finally:
            by_hand.kill()
    tidy(tmp_path)
    left = {"session_2026-01-03", "session_2026-01-04", "session_2026-01-05", "session_latest"}
    assert {path.name for path in sessions.iterdir()} == left
    assert list((tmp_path / "tmp").iterdir()) == []
    assert not (tmp_path / "workers-1.sock").exists()
