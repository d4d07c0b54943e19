from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from tests.support.training_workers import run_in_workers
from truthgpt_serve.config.hiding import HiddenValues
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.launch import record_failure
from truthgpt_serve.training.peers import EXIT_PEER_FAILED, GRACE_S, ending_with_peers


def fail_or_wait(rank: int, folder: Path) -> None:
    with ending_with_peers(folder):
        torch.distributed.barrier()
        if rank == 0:
            record_failure(folder, TrainingError("the disk is full"), HiddenValues())
        else:
            torch.distributed.barrier()
    time.sleep(GRACE_S + 10)  # as a worker of Ray does, with its connections open


@pytest.mark.long("starts two processes that train")
def test_a_worker_ends_that_waits_for_one_that_has_failed(tmp_path: Path) -> None:
    assert run_in_workers(fail_or_wait, tmp_path) == [0, EXIT_PEER_FAILED]
