"""Row caps: measured by real forwards, chosen by gain, kept on disk; and filled buckets."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from deployments.hf_diffusers.stepping import EngineOptions, RowCap, StepEngine
from deployments.hf_diffusers.stepping.scheduling.row_caps import (
    RowCapTable,
    config_digest,
    load_row_caps,
    measure_row_cap,
    save_row_caps,
)
from tests.support.images_engine import (
    TOLERANCE,
    create_inputs,
    create_pair,
    difference,
    engine_of,
    run_stock,
)
from tests.support.tiny_images import create_pipeline


def _measure(seconds: dict[int, float], *, max_rows: int = 16, rows_per_call: int = 2) -> RowCap:
    now = 0.0

    def forward(num_calls: int) -> None:
        nonlocal now
        rows = num_calls * rows_per_call
        if rows not in seconds:
            raise torch.OutOfMemoryError("too large")
        now += seconds[rows]

    return measure_row_cap(
        forward,
        rows_per_call,
        max_rows=max_rows,
        num_repeats=1,
        min_gain=0.25,
        synchronize=lambda: None,
        clock=lambda: now,
    )


def test_the_cap_is_where_more_rows_stop_to_pay() -> None:
    cap = _measure({2: 0.02, 4: 0.022, 8: 0.03, 16: 0.058})
    assert cap.max_rows == 8
    assert list(cap.seconds) == [2, 4, 8, 16]
    assert cap.seconds[8] == pytest.approx(0.03)


def test_a_full_device_gets_a_cap_of_one_call() -> None:
    assert _measure({2: 0.02, 4: 0.04}).max_rows == 2


def test_measuring_stops_at_the_memory_and_at_the_limit() -> None:
    assert _measure({2: 0.02, 4: 0.02}).max_rows == 4
    assert _measure({2: 0.01, 4: 0.01, 6: 0.01}, max_rows=7).max_rows == 6


def test_profile_measures_once_and_keeps_it_on_disk(tmp_path: Path) -> None:
    file = tmp_path / "folder" / "caps.json"
    ours = create_pipeline("sd")
    forwards: list[int] = []
    ours.unet.register_forward_pre_hook(
        lambda _, args, kwargs: forwards.append((args[0] if args else kwargs["sample"]).shape[0]),
        with_kwargs=True,
    )
    shapes = [create_inputs(1), create_inputs(1, height=48, width=48)]
    options = EngineOptions(row_caps_file=file, max_rows=4, min_row_gain=0.0)
    with StepEngine(options) as engine:
        engine.add_pipeline("p", ours)
        caps = engine.profile("p", shapes, num_repeats=1)
        assert engine.statistics().ongoing == 0
    assert {key.rsplit("|", 1)[1] for key in caps} == {"4x16x16", "4x24x24"}
    assert all(key.startswith("cpu-") and "|float32|" in key for key in caps)
    assert set(forwards) == {2, 4}
    assert load_row_caps(file) == caps
    forwards.clear()
    with StepEngine(options) as engine:
        engine.add_pipeline("p", ours)
        assert engine.profile("p", shapes) == caps
    assert forwards == []


def test_profile_without_requests_takes_the_pipelines_own_size() -> None:
    with engine_of(create_pipeline("sd"), max_rows=2) as engine:
        assert len(engine.profile("p", num_repeats=1)) == 1


def test_profile_says_what_the_pipeline_says_and_refuses_other_modes() -> None:
    ours = create_pipeline("sd")
    with engine_of(ours) as engine:
        with pytest.raises(ValueError, match="divisible by 8"):
            engine.profile("p", [create_inputs(1, height=33)])
        engine.add_pipeline("alone", ours, mode="exclusive")
        with pytest.raises(ValueError, match="not batched"):
            engine.profile("alone", [create_inputs(1)])


def test_a_cap_holds_for_its_shape(tmp_path: Path) -> None:
    file = tmp_path / "caps.json"
    ours = create_pipeline("sd")
    digest = config_digest(ours.unet)
    key = f"cpu-{torch.get_num_threads()}|float32|{digest}|4x16x16"
    save_row_caps(file, {key: RowCap(2)})
    with engine_of(ours, row_caps_file=file) as engine:
        jobs = [engine.submit("p", create_inputs(seed)) for seed in range(4)]
        for job in jobs:
            job.result(60)
        before = engine.statistics()
        assert before.rows["p.unet"] == 2 * before.forwards["p.unet"]
        wide = [engine.submit("p", create_inputs(seed, width=48)) for seed in range(4)]
        for job in wide:
            job.result(60)
        after = engine.statistics()
        assert after.rows["p.unet"] > 2 * after.forwards["p.unet"]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"version": 1}',
        '{"version": 2, "caps": {}}',
        '{"version": 1, "caps": {"key": {"max_rows": 0, "seconds": {}}}}',
        '{"version": 1, "caps": {"key": {"max_rows": "many", "seconds": {}}}}',
        '{"version": 1, "caps": {"key": 3}}',
        "\x00\x01",
    ],
)
def test_a_damaged_file_is_ignored_with_a_warning(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "caps.json"
    file.write_text(text, encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        table = RowCapTable(8, file)
    assert "damaged" in caplog.text
    table.put("key", RowCap(4, {2: 0.5}))
    assert load_row_caps(file) == {"key": RowCap(4, {2: 0.5})}
    assert json.loads(file.read_text(encoding="utf-8"))["version"] == 1
    assert list(tmp_path.iterdir()) == [file]


def test_two_engines_do_not_lose_each_others_caps(tmp_path: Path) -> None:
    file = tmp_path / "caps.json"
    one, other = RowCapTable(8, file), RowCapTable(8, file)
    one.put("a", RowCap(2))
    other.put("b", RowCap(4))
    assert set(load_row_caps(file)) == {"a", "b"}


def test_a_file_that_cannot_be_written_is_only_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "taken").write_text("a file, not a folder", encoding="utf-8")
    table = RowCapTable(8, None)
    table._file = tmp_path / "taken" / "caps.json"
    with caplog.at_level(logging.WARNING):
        table.put("key", RowCap(4))
    assert "could not be written" in caplog.text or "cannot be read" in caplog.text
    assert table.max_rows("key") == 4


def test_digests_tell_configurations_apart() -> None:
    one, same, other = create_pipeline("sd"), create_pipeline("sd", 5), create_pipeline("sdxl")
    assert config_digest(one.unet) == config_digest(same.unet)
    assert config_digest(one.unet) != config_digest(other.unet)
    assert config_digest(one.text_encoder) == config_digest(same.text_encoder)


def test_batches_are_filled_up_to_a_bucket_and_stay_right() -> None:
    ours, stock = create_pair()
    rows: list[int] = []

    def note(module: Any, args: Any, kwargs: Any) -> None:
        rows.append((args[0] if args else kwargs["sample"]).shape[0])

    ours.unet.register_forward_pre_hook(note, with_kwargs=True)
    requests = [create_inputs(seed, steps=2 + seed) for seed in range(3)]
    requests.append(create_inputs(9, steps=4, guidance_scale=1.0))
    with engine_of(ours, batch_buckets=(2, 4, 8)) as engine:
        jobs = [engine.submit("p", inputs) for inputs in requests]
        for job, inputs in zip(jobs, requests, strict=True):
            assert difference(job, run_stock(stock, inputs)) <= TOLERANCE
        statistics = engine.statistics()
    assert set(rows) <= {2, 4, 8}
    assert sum(rows) > statistics.rows["p.unet"]  # rows that filled are not counted
