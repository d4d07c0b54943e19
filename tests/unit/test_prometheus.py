"""Pages of metrics: labels are escaped, and each page has only its own metrics."""

from __future__ import annotations

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.parser import text_string_to_metric_families

from truthgpt_serve.prometheus import labeled, write_page

ODD = 'a "quoted" \\ name\nof two lines'


def test_labels_are_escaped() -> None:
    page = write_page([labeled(CounterMetricFamily, "runs", "Runs.", "module", {ODD: 2, "b": 3})])
    assert 'runs_total{module="a \\"quoted\\" \\\\ name\\nof two lines"} 2.0\n' in page
    [family] = text_string_to_metric_families(page)
    found = {sample.labels["module"]: sample.value for sample in family.samples}
    assert found == {ODD: 2, "b": 3}


def test_a_page_has_its_own_metrics_and_no_others() -> None:
    page = write_page(
        [
            GaugeMetricFamily("requests", "Now.", 1),
            CounterMetricFamily("requests", "Ever.", 2),
        ]
    )
    assert page.splitlines() == [
        "# HELP requests Now.",
        "# TYPE requests gauge",
        "requests 1.0",
        "# HELP requests_total Ever.",
        "# TYPE requests_total counter",
        "requests_total 2.0",
    ]
