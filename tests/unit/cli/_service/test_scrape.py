"""Pages of metrics of any server."""

from __future__ import annotations

from truthgpt_serve.cli._service.scrape import Samples


def test_a_page_of_metrics_may_have_anything_in_it() -> None:
    page = 'a{x="1"} 1\na{x="2"} 2 \nab 7\na NaN-ish\na{broken 5\n# a 9\na +Inf\n'
    samples = Samples(page, {"a"})
    assert samples.total("a", x="2") == 2
    assert samples.total("a", x="3") is None
    assert samples.total("ab") is None
    assert samples.total("a") == float("inf")
