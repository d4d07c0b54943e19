from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.support.bench_server import KEY, BenchServer, serve_asgi
from tests.support.cli_service import write_run
from truthgpt_serve.bench.report import build_report
from truthgpt_serve.bench.result import OWN, read_results
from truthgpt_serve.bench.target import BenchError
from truthgpt_serve.cli import main

FEW = ("--concurrency", "2", "--requests", "4", "--output-len", "3", "--warmup", "0")
VLLM = Path(__file__).parents[1] / "bench" / "files" / "vllm.json"
VOID = {"area", "br", "col", "hr", "img", "input", "link", "meta"}
QUIET = {"circle", "line", "rect", "ellipse", "path"}


def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, ["bench", *arguments], env=env)


class Page(HTMLParser):
    """Checks that a page is well formed, and keeps what tests ask for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.ids: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(text)
        self.close()
        assert self.open == [], "elements that nothing ends"
        assert len(self.ids) == len(set(self.ids)), "ids that are there twice"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if found.get("id"):
            self.ids.append(str(found["id"]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in QUIET | VOID
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if data.strip() and self.open:
            self.texts.append((self.open[-1], data))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.tags if name == tag]


def check_report(text: str) -> Page:
    """Checks what every report must be: self-contained and accessible."""
    page = Page(text)
    assert page.tags[0] == ("html", {"lang": "en"})
    names = {name for name, _ in page.tags}
    assert not names & {"script", "img", "link", "iframe", "object"}
    assert not any("src" in found or "href" in found for _, found in page.tags)
    assert "url(" not in text
    assert "@import" not in text
    charts = [found for found in page.all("svg") if found.get("role") == "img"]
    for chart in charts:
        labels = str(chart["aria-labelledby"]).split()
        assert len(labels) == 2
        assert set(labels) <= set(page.ids)
    assert len(page.all("caption")) == len(page.all("table")) >= 1
    assert all(found.get("tabindex") == "0" for found in page.all("div") if "role" in found)
    assert "prefers-color-scheme:dark" in text
    assert "width=device-width" in text
    return page


def test_a_sweep_is_printed_written_and_drawn(tmp_path: Path) -> None:
    output, html = tmp_path / "results.json", tmp_path / "report.html"
    with serve_asgi(BenchServer()) as url:
        done = run(
            "--url", url, "--concurrency", "1,2", "--requests", "6", "--output-len", "3",
            "--slo", "ttft=60000,e2e=60000", "-o", str(output), "--html", str(html), "--json",
            "--save-detailed", "--label", "ours",
        )  # fmt: skip
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    results = read_results(output)
    assert printed["results"] == results
    assert [result["max_concurrency"] for result in results] == [1, 2]
    for result in results:
        assert (result["completed"], result["failed"], result["model_id"]) == (6, 0, "words")
        assert result["total_output_tokens"] == 18
        assert result["request_goodput"] == pytest.approx(result["request_throughput"])
        assert len(result["ttfts"]) == 6
        assert [len(itls) for itls in result["itls"]] == [2] * 6
        assert result["generated_texts"][0] == "w w w "
        assert result["request_rate"] == "inf"
        assert result[OWN]["token_counts"] == "usage"
    page = check_report(html.read_text())
    titles = [text for tag, text in page.texts if tag == "figcaption"]
    assert {"Time to first token", "End-to-end latency", "Output tokens per second"} <= set(titles)
    assert ("th", "2 at once") in page.texts


def test_the_table_of_one_measurement_and_of_a_comparison() -> None:
    with serve_asgi(BenchServer()) as url:
        done = run("--url", url, *FEW)
        assert done.exit_code == 0, done.output
        for word in ("TTFT", "TPOT", "ITL", "E2E", "median", "p99", "output tokens/s"):
            assert word in done.stdout
        done = run("--url", url, "--against", f"{url}/v1", "--pairs", "2", *FEW)
    assert done.exit_code == 0, done.output
    assert "--url / --against" in done.stdout
    assert "TTFT median, ms" in done.stdout


@pytest.mark.parametrize(("host", "key"), [("127.0.0.1", f"Bearer {KEY}"), ("localhost", "")])
def test_the_key_goes_to_another_address_of_the_same_host_only(host: str, key: str) -> None:
    ours, theirs = BenchServer(), BenchServer()
    with serve_asgi(ours) as url, serve_asgi(theirs) as other:
        done = run("--url", url, "--against", other.replace("127.0.0.1", host), "--pairs", "1",
                   *FEW, env={"TRUTHGPT_API_KEY": KEY})  # fmt: skip
    assert done.exit_code == 0, done.output
    assert set(ours.keys) == {f"Bearer {KEY}"}
    assert set(theirs.keys) == {key}


def test_rates_and_other_endpoints() -> None:
    with serve_asgi(BenchServer()) as url:
        done = run("--url", url, "--rate", "200", "--requests", "10", "--json",
                   "--endpoint", "completions", "--unit", "tokens", "--input-len", "9")  # fmt: skip
        assert done.exit_code == 0, done.output
        (result,) = json.loads(done.stdout)["results"]
        assert (result["request_rate"], result["completed"]) == (200, 10)
        assert result["duration"] > 0.04
        for endpoint in ("embeddings", "images"):
            done = run("--url", url, "--endpoint", endpoint, "--json", *FEW)
            assert done.exit_code == 0, done.output
            (result,) = json.loads(done.stdout)["results"]
            assert (result["completed"], result["mean_ttft_ms"]) == (4, 0)
            assert result["mean_e2el_ms"] > 0


def test_a_constant_distance_is_measured_and_written_as_json() -> None:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not JSON")

    with serve_asgi(BenchServer()) as url:
        done = run("--url", url, "--rate", "200", "--requests", "4", "--burstiness", "inf",
                   "--output-len", "2", "--json")  # fmt: skip
    assert done.exit_code == 0, done.output
    (result,) = json.loads(done.stdout, parse_constant=refuse)["results"]
    assert (result["completed"], result["burstiness"]) == (4, "inf")


def test_a_trace_is_sent_at_its_times(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [{"timestamp": at, "input_length": 3, "output_length": 2} for at in (0, 400, 800)]
    trace.write_text("\n".join(json.dumps(row) for row in rows))
    with serve_asgi(BenchServer()) as url:
        done = run("--url", url, "--trace", str(trace), "--trace-speed", "2", "--json")
    assert done.exit_code == 0, done.output
    (result,) = json.loads(done.stdout)["results"]
    assert (result["completed"], result["total_output_tokens"]) == (3, 6)
    assert 0.4 <= result["duration"] < 20
    assert (result["num_prompts"], result[OWN]["load"]) == (3, "trace")


def test_a_server_without_usage_is_said() -> None:
    with serve_asgi(BenchServer()) as url:
        done = run("--url", url, "--model", "no-usage", *FEW)
    assert done.exit_code == 0, done.output
    assert "does not report usage" in done.stdout


def test_failed_requests_make_the_exit_code(tmp_path: Path) -> None:
    html = tmp_path / "r.html"
    for allowed, code in (("0", 1), ("99", 1), ("100", 0)):
        with serve_asgi(BenchServer()) as url:
            done = run("--url", url, "--model", "flaky", *FEW, "--allow-failed", allowed,
                       "--html", str(html), env={"TRUTHGPT_API_KEY": KEY})  # fmt: skip
        assert done.exit_code == code, done.output
        assert "4 x http 429" in done.stdout
        assert KEY not in done.output + html.read_text()
        assert "http 429" in html.read_text()


def test_a_server_that_is_not_there_or_refuses_is_one_line() -> None:
    done = run("--url", "http://127.0.0.1:9")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "127.0.0.1:9" in done.stderr
    with serve_asgi(BenchServer()) as url:
        done = run("--url", url, "--model", "busy", env={"TRUTHGPT_API_KEY": KEY})
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "http 429" in done.stderr
    assert KEY not in done.output


@pytest.mark.parametrize(
    "arguments",
    [
        ("--concurrency", "x"),
        ("--concurrency", "0"),
        ("--concurrency", "1.5"),
        ("--concurrency", "5000"),
        ("--concurrency", "1,2", "--rate", "3"),
        ("--rate", "inf"),
        ("--slo", "ttft"),
        ("--slo", "itl=3"),
        ("--slo", "ttft=-1"),
        ("--percentiles", "101"),
        ("--extra-body", "[1]"),
        ("--prompt", "a", "--dataset", __file__),
        ("--html", "/no/such/folder/r.html"),
        ("--html", ""),
        ("-o", ""),
        ("--api-key-env", "NO_SUCH_VARIABLE"),
        ("--url", "ftp://a"),
        ("report", "/no/such/file"),
        ("report", __file__),
    ],
    ids=" ".join,
)
def test_wrong_use_is_exit_code_2_before_anything_is_sent(arguments: tuple[str, ...]) -> None:
    given = arguments if "--url" in arguments else ("--url", "http://127.0.0.1:9", *arguments)
    done = run(*given)
    assert done.exit_code == 2, done.output
    assert done.stdout == ""


def test_the_service_of_this_machine_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRUTHGPT_URL", raising=False)
    server = BenchServer()
    with serve_asgi(server) as url:
        write_run(tmp_path / ".run", address=url)
        done = run(*FEW, "--json", "--model", "words")
        assert done.exit_code == 0, done.output
        num_sent = len(server.bodies)
        assert num_sent >= 4
        assert json.loads(done.stdout)["results"][0][OWN]["url"] == url
        # Named by the user, another address counts.
        done = run(*FEW, env={"TRUTHGPT_URL": "http://127.0.0.1:9"})
        assert done.exit_code == 1
        assert len(server.bodies) == num_sent
    assert "make serve runs here" in " ".join(run("--help").output.split())


def folder_of(path: Path) -> list[str]:
    return sorted(each.name for each in path.parent.iterdir())


def test_an_older_file_stays_until_there_is_another(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    output.write_text("older")
    output.chmod(0o640)
    link = tmp_path / "link.json"
    link.symlink_to(output)
    server = BenchServer()
    during: list[list[str]] = []

    async def observed(scope: Any, receive: Any, send: Any) -> None:
        during.append([output.read_text(), *folder_of(output)])
        await server(scope, receive, send)

    with serve_asgi(observed) as url:
        done = run("--url", url, *FEW, "-o", str(link))
    assert done.exit_code == 0, done.output
    assert during
    assert all(text == "older" for text, *_ in during)
    assert all(len(names) == 3 for _, *names in during), "opened before anything is sent"
    assert folder_of(output) == ["link.json", "results.json"]
    assert link.is_symlink()
    assert output.stat().st_mode & 0o777 == 0o640
    assert len(read_results(output)) == 1
    # Nothing that could be written: no server.
    before = output.read_text()
    assert run("--url", "http://127.0.0.1:9", "-o", str(output)).exit_code != 0
    assert output.read_text() == before
    assert folder_of(output) == ["link.json", "results.json"]


@pytest.mark.parametrize("option", ["-o", "--html"])
def test_a_full_disk_does_not_lose_what_was_measured(tmp_path: Path, option: str) -> None:
    other = tmp_path / "other"
    others = ["--html" if option == "-o" else "-o", str(other)]
    with serve_asgi(BenchServer()) as url:
        done = run("--url", url, *FEW, "--json", option, "/dev/full", *others)
    assert done.exit_code == 1
    assert "/dev/full cannot be written: No space left on device" in done.stderr
    assert json.loads(done.stdout)["results"][0]["completed"] == 4
    assert other.read_text(), "the other file is written all the same"
    assert folder_of(other) == ["other"]


def test_a_folder_that_takes_no_files_is_found_before_anything_is_sent(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    places = [str(tmp_path), str(tmp_path / "file" / "x"), "/proc/x"]
    for place in places:
        server = BenchServer()
        with serve_asgi(server) as url:
            done = run("--url", url, *FEW, "-o", place)
        assert done.exit_code == 2, place
        assert server.bodies == []
    same = str(tmp_path / "same")
    assert run("--url", "http://127.0.0.1:9", "-o", same, "--html", same).exit_code == 2


def test_results_go_into_a_pipe_too() -> None:
    with serve_asgi(BenchServer()) as url:
        done = run("--url", url, *FEW, "-o", "/dev/null", "--html", "/dev/null2/x")
        assert done.exit_code == 2
        assert run("--url", url, *FEW, "-o", "/dev/null").exit_code == 0
    assert Path("/dev/null").is_char_device()


@pytest.mark.long("sends requests for seconds")
def test_ctrl_c_reports_what_was_measured(tmp_path: Path) -> None:
    output = tmp_path / "results.json"
    server = BenchServer(delay_s=0.01)
    with serve_asgi(server) as url:
        command = [sys.executable, "-c", "from truthgpt_serve.cli import main; main()", "bench",
                   "--url", url, "--concurrency", "2,4", "--duration", "100", "--json",
                   "-o", str(output)]  # fmt: skip
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            deadline = time.monotonic() + 60
            while len(server.bodies) < 8:
                assert time.monotonic() < deadline, "nothing was sent"
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            printed, errors = process.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()
    assert process.returncode == 130, errors
    results = json.loads(printed)["results"]
    assert results == read_results(output)
    assert len(results) == 1, "the second load is not begun"
    assert results[0][OWN]["num_interrupted"] >= 1
    assert b"Traceback" not in errors


# -- results of other programs


def test_results_have_every_key_of_vllms_and_reports_draw_both(tmp_path: Path) -> None:
    ours, html = tmp_path / "ours.json", tmp_path / "r.html"
    with serve_asgi(BenchServer()) as url:
        done = run("--url", url, *FEW, "--save-detailed", "--slo", "e2e=1", "-o", str(ours))
    assert done.exit_code == 0, done.output
    (theirs,) = read_results(VLLM)
    assert theirs.keys() <= read_results(ours)[0].keys()
    done = run("report", str(ours), str(VLLM), "-o", str(html))
    assert done.exit_code == 0, done.output
    page = check_report(html.read_text())
    texts = [text for _, text in page.texts]
    assert any(text.startswith("vllm stream") for text in texts)
    assert f"{theirs['median_ttft_ms']:.3g}" in texts


def test_reports_escape_what_files_say() -> None:
    evil = "<script>alert(1)</script>\"'&"
    result: dict[str, Any] = {
        "model_id": evil, "label": evil, "backend": evil, "date": evil, "request_throughput": 1.0,
        "request_rate": evil, "max_concurrency": None, "completed": 1, "failed": 0,
        OWN: {"load": evil, "url": evil, "errors": {evil: {"count": 1, "examples": {evil: 1}}}},
    }  # fmt: skip
    check_report(build_report(evil, [(evil, [result])]))


@pytest.mark.parametrize(
    "fields",
    [
        {"request_rate": 1.0, "output_throughput": float("nan"), "mean_ttft_ms": float("inf")},
        {OWN: {"quantiles_ms": {"ttft": ["x", "y"]}}},
        {OWN: {"course": [1], "errors": 3}},
        {"ttfts": [None, None]},
    ],
)
def test_figures_of_another_form_are_refused_in_one_line(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    path = tmp_path / "x.json"
    results = [{"request_throughput": at, "max_concurrency": at} | fields for at in (1, 2)]
    path.write_text("\n".join(json.dumps(result) for result in results))
    done = run("report", str(path), "-o", str(tmp_path / "r.html"))
    assert done.exit_code in (0, 2), done.output
    assert done.exit_code == 0 or "x: the figures are of another form" in done.stderr
    if done.exit_code == 0:
        check_report((tmp_path / "r.html").read_text())


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 1}', "[1]", "[" * 5000, "null"])
def test_files_that_are_no_results_are_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(BenchError, match=r"x\.json"):
        read_results(path)
