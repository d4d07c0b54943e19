"""The samples of a page: a row for each prompt, a column for each step."""

from __future__ import annotations

from truthgpt_serve.training.generation.record import KeptSample
from truthgpt_serve.training.report.samples import draw_samples


def test_a_prompt_that_is_given_twice_has_two_rows() -> None:
    texts = {(step, at): f"text {step} {at}" for step in (1, 2) for at in range(3)}
    prompts = ["a <b>", "a <b>", "c"]
    samples = [KeptSample(step, prompts[at], text, None, "") for (step, at), text in texts.items()]
    page = draw_samples({"run": samples})
    assert page.count('scope="row"') == 3
    assert page.count("a &lt;b&gt;") == 2
    assert all(page.count(f"<pre>{text}</pre>") == 1 for text in texts.values())
    assert draw_samples({"run": []}) == ""
