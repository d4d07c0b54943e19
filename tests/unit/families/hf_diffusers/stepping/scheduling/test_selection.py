"""Which calls run next and which jobs begin: order, fairness both ways, turns of exclusive jobs."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch

from deployments.hf_diffusers.stepping import JobOptions
from deployments.hf_diffusers.stepping.job import Job
from deployments.hf_diffusers.stepping.scheduling.cost_model import CostKey
from deployments.hf_diffusers.stepping.scheduling.scheduled_job import ModuleCall, ScheduledJob
from deployments.hf_diffusers.stepping.scheduling.selection import Admission, CallChooser
from tests.support.images_engine import WAIT_S, create_inputs, engine_of
from tests.support.tiny_images import create_pipeline

SCHEMA: Any = SimpleNamespace()


def _scheduled(
    *, steps: int = 10, cost: float = 0.1, at: float = 0.0, deadline: float = math.inf
) -> ScheduledJob:
    pipeline: Any = SimpleNamespace(name="p")
    return ScheduledJob(
        job=Job("p", steps),
        entry=pipeline,
        inputs={},
        scheduler=None,
        adapters=(),
        submitted_at=at,
        deadline=deadline,
        num_steps=steps,
        num_images=1,
        cost_key=CostKey("p", None),
        step_cost=cost,
        partial_images=0,
        on_event=None,
        exclusive=False,
    )


def _call(
    scheduled: ScheduledJob, key: str = "unet", *, rows: int = 1, is_light: bool = False
) -> ModuleCall:
    module: Any = SimpleNamespace(adapters=None)
    return ModuleCall(
        scheduled=scheduled,
        module=module,
        method="__call__",
        args=(),
        kwargs={},
        bound={},
        schema=SCHEMA,
        key=key,
        num_rows=rows,
        shape="",
        adapters=(),
        device=torch.device("cpu"),
        is_light=is_light,
    )


def _chooser(cap: int, *, max_held: int = 4, **options: float) -> CallChooser:
    given = {"aging": 1.0, "oldest_share": 0.1, **options}
    return CallChooser(max_held=max_held, max_rows=lambda _: cap, **given)


def _choose(calls: list[ModuleCall], now: float = 0.0, cap: int = 8) -> list[ModuleCall]:
    return _chooser(cap).choose(calls, now)


def test_text_encoding_goes_before_denoising() -> None:
    urgent = _call(_scheduled(deadline=1.0))
    light = _call(_scheduled(steps=50), "text_encoder", is_light=True)
    assert _choose([urgent, light]) == [light]


def _crowd(num_images: int, **given: Any) -> list[ModuleCall]:
    return [_call(_scheduled(**given), rows=2) for _ in range(num_images)]


def test_an_encoding_waits_for_others_while_denoising_is_crowded() -> None:
    chooser, crowd = _chooser(8, max_held=3), _crowd(5)
    early = _call(_scheduled(), "text_encoder", is_light=True)
    for _ in range(2):
        assert len(chooser.choose([*crowd, early], 0.0)) == 4
    late = _call(_scheduled(), "text_encoder", is_light=True)
    assert chooser.choose([*crowd, early, late], 0.0)[0].key == "unet"
    assert chooser.choose([*crowd, early, late], 0.0) == [early, late]  # early has waited for three


def test_what_waited_for_its_encoding_does_not_wait_for_the_next_one_but_for_its_decoding() -> None:
    chooser, crowd, scheduled = _chooser(8, max_held=1), _crowd(5), _scheduled()
    encodings = [_call(scheduled, name, is_light=True) for name in ("encoder", "encoder 2")]
    assert chooser.choose([*crowd, encodings[0]], 0.0) == crowd[:4]
    assert chooser.choose([*crowd, encodings[0]], 0.0) == [encodings[0]]
    assert chooser.choose([*crowd, encodings[1]], 0.0) == [encodings[1]]
    step = _call(scheduled, rows=2)
    scheduled.step = 9
    assert step in chooser.choose([*crowd, step], 0.0)
    decoding = _call(scheduled, "vae", is_light=True)
    assert chooser.choose([*crowd, decoding], 0.0) == crowd[:4]
    assert chooser.choose([*crowd, decoding], 0.0) == [decoding]


def test_a_decoding_waits_for_no_others_without_a_crowd_of_its_kind() -> None:
    decoding = _call(_scheduled(), "vae", is_light=True)
    assert _choose([*_crowd(4), decoding]) == [decoding]  # one forward takes them all
    crowd = _crowd(5)
    other_size = _call(_scheduled(), "vae", is_light=True)
    other_size.scheduled.cost_key = CostKey("p", (64, 64))
    assert _choose([*crowd, other_size]) == [other_size]
    assert _choose([*crowd, decoding, other_size]) == [decoding, other_size]
    promised = _call(_scheduled(deadline=9.0), "vae", is_light=True)
    assert _choose([*crowd, promised], now=1.0) == [promised]
    unbatchable = _call(_scheduled(), "vae", is_light=True)
    unbatchable.schema = None
    assert _choose([*crowd, unbatchable]) == [unbatchable]
    full = [_call(_scheduled(), "vae", rows=2, is_light=True) for _ in range(4)]
    assert _choose([*crowd, *full]) == full
    assert _chooser(8, max_held=0).choose([*crowd, decoding], 0.0) == [decoding]


def test_the_earliest_deadline_goes_first_and_a_missed_one_counts_no_more() -> None:
    late, soon = _call(_scheduled(deadline=9.0), "a"), _call(_scheduled(deadline=5.0), "b")
    short = _call(_scheduled(steps=1), "c")
    assert _choose([late, short, soon], now=1.0) == [soon]
    assert _choose([late, short, soon], now=6.0) == [late]
    assert _choose([late, short, soon], now=10.0) == [short]


def test_among_jobs_of_one_age_the_least_remaining_work_goes_first() -> None:
    few, many = _call(_scheduled(steps=5), "a"), _call(_scheduled(steps=50), "b")
    cheap = _call(_scheduled(steps=20, cost=0.001), "c")
    assert _choose([many, few]) == [few]
    assert _choose([many, few, cheap]) == [cheap]
    many.scheduled.step = 49
    assert _choose([many, few]) == [many]


def test_a_batch_takes_what_fits_under_the_cap_and_no_other_key() -> None:
    calls = [_call(_scheduled(steps=steps), rows=2) for steps in (9, 1, 5, 7)]
    other = _call(_scheduled(steps=2), "other")
    assert _choose([*calls, other], cap=6) == [calls[1], calls[2], calls[3]]
    assert _choose([*calls, other], cap=2) == [calls[1]]
    assert _choose([*calls, other], cap=1) == [calls[1]]  # larger than the cap: alone


def _simulate(
    arrivals: list[tuple[float, str, int, float]], until: float, **options: float
) -> dict[str, list[tuple[float, float]]]:
    """Runs jobs (arrival, kind, steps, seconds a step) one step at a time, each kind its own key.

    Returns:
        Submission and end of each job that ended, by kind.
    """
    now = 0.0
    waiting = sorted(arrivals)
    calls: list[ModuleCall] = []
    ended: dict[str, list[tuple[float, float]]] = {}
    chooser = _chooser(1, max_held=4, **options)
    while now < until and (waiting or calls):
        while waiting and waiting[0][0] <= now:
            at, kind, steps, cost = waiting.pop(0)
            calls.append(_call(_scheduled(steps=steps, cost=cost, at=at), kind))
        if not calls:
            now = waiting[0][0]
            continue
        chosen = chooser.choose(calls, now)[0]
        now += chosen.scheduled.step_cost
        chosen.scheduled.step += 1
        if chosen.scheduled.step == chosen.scheduled.num_steps:
            calls.remove(chosen)
            ended.setdefault(str(chosen.key), []).append((chosen.scheduled.submitted_at, now))
    return ended


def test_small_images_do_not_starve_a_large_one() -> None:
    # Small images alone ask for 105 % of the device, for ever; the large one needs 20 s by itself.
    small = [(0.95 * index, "small", 10, 0.1) for index in range(600)]
    ended = _simulate([(0.0, "large", 20, 1.0), *small], until=500.0)
    assert len(ended["large"]) == 1
    assert ended["large"][0][1] <= 20 / 0.1 + 1
    arrivals = [(0.0, "large", 20, 1.0), *small]
    assert "large" not in _simulate(arrivals, 500.0, aging=0.0, oldest_share=0.0)


def test_the_share_of_a_large_image_slows_small_ones_by_no_more() -> None:
    small = [(1.25 * index, "small", 10, 0.1) for index in range(400)]  # 80 % of the device
    ended = _simulate([(0.0, "large", 100, 1.0), *small], until=500.0)
    waits = sorted(end - at for at, end in ended["small"])
    assert len(waits) >= 398
    assert waits[len(waits) // 2] < 3.0  # 1 s alone
    assert waits[-1] < 6.0


def test_large_images_do_not_starve_small_ones() -> None:
    large = [(15.0 * index, "large", 20, 1.0) for index in range(40)]  # 133 % of the device
    small = [(20.0 + 10.0 * index, "small", 10, 0.1) for index in range(50)]
    ended = _simulate([*large, *small], until=600.0)
    waits = sorted(end - at for at, end in ended["small"])
    assert len(waits) == 50
    assert waits[-1] < 20  # first come, first served lets them wait for the backlog of large ones
    assert ended["large"]


def test_exclusive_and_batched_jobs_take_turns() -> None:
    admission = Admission(max_ongoing=2)
    jobs = [_scheduled() for _ in range(6)]
    alone = [jobs[0], jobs[1]]
    for scheduled in alone:
        scheduled.exclusive = True
    batched = jobs[2:]
    assert admission.choose([*alone, *batched], num_ongoing=1) == []  # waits for the one to end
    assert admission.choose([*alone, *batched], num_ongoing=0) == [alone[0]]
    assert admission.choose([alone[1], *batched], num_ongoing=0) == batched[:2]
    assert admission.choose([alone[1], *batched[2:]], num_ongoing=2) == []
    assert admission.choose([alone[1], *batched[2:]], num_ongoing=0) == [alone[1]]
    assert admission.choose([batched[2]], num_ongoing=0) == [batched[2]]


def test_exclusive_jobs_run_at_once_when_no_batched_one_waits() -> None:
    admission = Admission(max_ongoing=2)
    first, second = _scheduled(), _scheduled()
    first.exclusive = second.exclusive = True
    assert admission.choose([first, second], num_ongoing=0) == [first]
    assert admission.choose([second], num_ongoing=0) == [second]


def test_a_deadline_overtakes_in_the_queue() -> None:
    order: list[str] = []
    with engine_of(create_pipeline("sd"), max_ongoing=1) as engine:
        first = engine.submit("p", create_inputs(0, steps=30))
        while first.progress.step < 1:
            pass
        slow = engine.submit("p", create_inputs(1, steps=20), JobOptions(deadline_s=100.0))
        quick = engine.submit("p", create_inputs(2, steps=2))
        slow.add_done_callback(lambda _: order.append("slow"))
        quick.add_done_callback(lambda _: order.append("quick"))
        for job in (first, slow, quick):
            job.result(WAIT_S)
    assert order == ["slow", "quick"]
