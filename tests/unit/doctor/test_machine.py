"""The probes of this machine."""

from __future__ import annotations

import sys
from pathlib import Path

from truthgpt_serve.doctor.machine import probe_hardware, probe_python


def test_the_machine_is_described() -> None:
    assert probe_python().works
    assert sys.executable in probe_python().detail
    found = {probe.name: probe for probe in probe_hardware()}
    assert found["CPU"].works
    assert "GiB" in found["memory"].detail


def test_gpus_come_from_the_drivers_own_program(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho '580.1, NVIDIA H100, 81559 MiB, 80000 MiB, 9.0'\n")
    program.chmod(0o755)
    environ = {"PATH": str(tmp_path), "CUDA_VISIBLE_DEVICES": "0"}
    found = {probe.name: probe for probe in probe_hardware(environ)}
    assert found["GPU 0"].works
    assert "NVIDIA H100, 81559 MiB" in found["GPU 0"].detail
    assert "compute capability 9.0, driver 580.1" in found["GPU 0"].detail
    program.write_text("#!/bin/sh\necho 'Driver/library version mismatch'; exit 18\n")
    found = {probe.name: probe for probe in probe_hardware(environ)}
    assert not found["GPU"].works
    assert "Driver/library version mismatch" in found["GPU"].detail
    assert not any(p.works for p in probe_hardware({"PATH": ""}) if p.name == "GPU")
