"""Installed versions against the project's pins."""

from __future__ import annotations

from truthgpt_serve.doctor.packages import probe_base, probe_versions


def test_versions_are_compared_with_the_projects_own_pins() -> None:
    assert probe_base().works, probe_base().detail
    found = {probe.name: probe for probe in probe_versions()}
    assert {*found} == {"ray", "torch", "vllm", "transformers", "diffusers", "onnxruntime"}
    assert found["ray"].works
    assert "pinned ==2.60.0" in found["ray"].detail
