"""`truthgpt bench`: measures a server with OpenAI's API under load, and draws reports of results.

What it imports to measure is imported when it does, so that `--help` is quick.
"""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from truthgpt_serve.cli._service.numbers import FiniteRange, NumberRange

if TYPE_CHECKING:
    from collections.abc import Callable

    from truthgpt_serve.bench.console import Console
    from truthgpt_serve.bench.files import ResultFile

EXIT_FAILED = 1
EXIT_INTERRUPTED = 130
_FILE = click.Path(dir_okay=False, path_type=Path)
_OLD_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


def _find_url() -> str:
    from truthgpt_serve.cli._service.address import find_address

    return find_address().url


_OPTIONS = (
    click.option("--url", envvar="TRUTHGPT_URL", default=_find_url,
                 show_default="what make serve runs here, else http://127.0.0.1:8000",
                 help="Address of the server; also from TRUTHGPT_URL."),
    click.option("--model", help="By default the first that answers, as /v1/models lists them."),
    click.option("--api-key-env", default="TRUTHGPT_API_KEY", show_default=True, metavar="NAME",
                 help="Environment variable that holds the API key."),
    click.option("--endpoint", default="chat", show_default=True,
                 type=click.Choice(["chat", "completions", "embeddings", "images"])),
    click.option("--insecure", is_flag=True, help="Do not check the server's certificate."),
    # -- load
    click.option("--concurrency", metavar="N[,N...]",
                 help="Requests at once, one measurement for each number; by default 1,4,16. "
                 "With --rate or --trace: the most at once."),
    click.option("--rate", metavar="R[,R...]",
                 help="Requests a second at random times, one measurement for each number."),
    click.option("--burstiness", type=NumberRange(min=0, min_open=True), default=1.0,
                 show_default=True, help="Of --rate: 1 is a Poisson process, below 1 comes in "
                 "bursts, above 1 is more even, inf is constant."),
    click.option("--trace", type=_OLD_FILE, help="Send at the times of a JSONL or CSV file."),
    click.option("--trace-speed", type=FiniteRange(min=0, min_open=True), default=1.0,
                 show_default=True, help="How much faster than in the trace."),
    click.option("--requests", type=click.IntRange(min=1),
                 help="Requests of each measurement; by default 8 for each one at once, or 30 s of "
                 "the rate, at least 20."),
    click.option("--duration", type=FiniteRange(min=0, min_open=True), metavar="SECONDS",
                 help="Send for so long instead."),
    click.option("--warmup", type=click.IntRange(min=0), default=1, show_default=True,
                 help="Requests before each measurement that do not count."),
    # -- prompts
    click.option("--input-len", type=click.IntRange(1, 1_000_000),
                 help="Length of random prompts; by default 64, and 6 of images."),
    click.option("--output-len", type=click.IntRange(min=1),
                 help="Most tokens of an answer; by default the dataset's, else 128."),
    click.option("--range-ratio", type=FiniteRange(0, 1, max_open=True), default=0.0,
                 show_default=True, help="Random lengths differ by so much both ways."),
    click.option("--unit", type=click.Choice(["words", "tokens"]), default="words",
                 show_default=True, help="Of --input-len; tokens needs the server's /tokenize."),
    click.option("--prompt", help="Send this text every time."),
    click.option("--dataset", type=_OLD_FILE,
                 help="Prompts from a file: JSONL with `prompt` or `messages`, or ShareGPT."),
    click.option("--ignore-eos", is_flag=True,
                 help="Let answers go on to --output-len, where the server can."),
    click.option("--extra-body", metavar="JSON", help="Further fields of each request."),
    click.option("--seed", type=int, default=0, show_default=True),
    # -- comparison
    click.option("--against", metavar="URL",
                 help="Compare with this address, measured in turns with --url."),
    click.option("--against-model", help="The model there, if it has another name."),
    click.option("--against-api-key-env", metavar="NAME",
                 help="Variable of the key there; by default --url's key, on the same host only."),
    click.option("--pairs", type=click.IntRange(min=1), default=3, show_default=True,
                 help="Measurements of each address and load."),
    # -- what comes of it
    click.option("--slo", metavar="LIMITS", help="Limits in milliseconds of a good request, for "
                 "goodput: ttft=200,tpot=30,e2e=2000."),
    click.option("--percentiles", default="90,99", show_default=True, metavar="P[,P...]"),
    click.option("--timeout", type=FiniteRange(min=0, min_open=True), default=300.0,
                 show_default=True, metavar="SECONDS", help="The longest time of one request."),
    click.option("--allow-failed", type=FiniteRange(0, 100), default=0.0, show_default=True,
                 metavar="PERCENT", help="Exit with 0 if no more requests fail than this."),
    click.option("--label", help="Names the results in reports."),
    click.option("-o", "--output", type=_FILE,
                 help="Write the results as `vllm bench serve` does, one a line."),
    click.option("--save-detailed", is_flag=True, help="With each request's own times and text."),
    click.option("--html", type=_FILE, help="Write a report with plots."),
    click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs."),
)  # fmt: skip


def _add_options(command: Any) -> Any:
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


_EXAMPLES = """\b
Examples:
  truthgpt bench --concurrency 1,4,16,64 --html report.html
  truthgpt bench --rate 2,4,8 --slo ttft=200,tpot=30
  truthgpt bench --against http://other:8000 --concurrency 16
"""


@click.group(invoke_without_command=True, epilog=_EXAMPLES)
@_add_options
@click.pass_context
def bench(ctx: click.Context, /, **options: Any) -> None:
    """Measures a server with OpenAI's API under load.

    Time to first token (TTFT), inter-token latency (ITL), time per output token (TPOT), end-to-end
    latency (E2E), throughput and goodput, as `vllm bench serve` defines them. Ctrl-C ends early and
    reports what was measured.

    Exits with 0; with 1 if the server does not answer or requests failed; with 2 for wrong options;
    with 130 after Ctrl-C.
    """
    if ctx.invoked_subcommand is not None:
        return
    from truthgpt_serve.bench.console import Console
    from truthgpt_serve.bench.target import TargetError

    console = Console(quiet=options["as_json"])
    try:
        code = _measure(options, console)
    except TargetError as error:
        raise click.ClickException(error.message) from error
    except KeyboardInterrupt:  # before there was anything to report, or for the second time
        code = EXIT_INTERRUPTED
    ctx.exit(code)


@bench.command()
@click.argument("files", nargs=-1, required=True, type=_OLD_FILE, metavar="FILE...")
@click.option("-o", "--output", type=_FILE, default=Path("report.html"), show_default=True)
@click.option("--title", default="Benchmark report", show_default=True)
def report(files: tuple[Path, ...], output: Path, title: str) -> None:
    """Draws results of `truthgpt bench` or `vllm bench serve` into one HTML file."""
    from truthgpt_serve.bench.files import result_file
    from truthgpt_serve.bench.report import make_report
    from truthgpt_serve.bench.result import read_results

    page = make_report(title, [(file.stem, read_results(file)) for file in files])
    with result_file(output) as report_file:
        report_file.write(page)
    click.echo(f"wrote {output}", err=True)


def _measure(options: dict[str, Any], console: Console) -> int:
    """Measures, shows and writes the results; returns the exit code."""
    import asyncio

    if options["output"] is not None and options["output"] == options["html"]:
        raise click.BadParameter("-o has the same file", param_hint="--html")
    with contextlib.ExitStack() as stack:
        files = {name: _open(options[name], f"--{name}", stack) for name in ("output", "html")}
        results, interrupted = asyncio.run(_run(options, console))
        try:
            _show(results, options, console)
        finally:  # also where the output is closed
            if results:
                _write(results, options["label"] or "", files)
    return EXIT_INTERRUPTED if interrupted else _exit_code(results, options["allow_failed"])


def _open(path: Path | None, option: str, stack: contextlib.ExitStack) -> ResultFile | None:
    """Finds out before minutes of measuring whether a result can be written."""
    from truthgpt_serve.bench.files import result_file
    from truthgpt_serve.bench.target import BenchError

    if path is None:
        return None
    try:
        return stack.enter_context(result_file(path))
    except BenchError as error:
        raise click.BadParameter(error.message, param_hint=option) from error


def _show(results: list[dict[str, Any]], options: dict[str, Any], console: Console) -> None:
    from truthgpt_serve.bench.compare import compare

    ratios = compare(results)
    if options["as_json"]:
        found = {"results": results, "comparison": [ratio.to_json() for ratio in ratios]}
        click.echo(json.dumps(found, ensure_ascii=False))
    else:
        console.show(results, ratios)


def _write(results: list[dict[str, Any]], label: str, files: dict[str, ResultFile | None]) -> None:
    """Writes each file; one that cannot be written does not keep the others from it."""
    from truthgpt_serve.bench.report import make_report
    from truthgpt_serve.bench.result import encode_results
    from truthgpt_serve.bench.target import BenchError

    failures = []
    texts: dict[str, Callable[[], str]] = {
        "output": lambda: encode_results(results),
        "html": lambda: make_report("Benchmark report", [(label, results)]),
    }
    for name, text in texts.items():
        try:
            if (file := files[name]) is not None:
                file.write(text())
        except BenchError as error:
            failures.append(error.message)
    if failures:
        raise click.ClickException("; ".join(failures))


async def _run(options: dict[str, Any], console: Console) -> tuple[list[dict[str, Any]], bool]:
    """Returns the results, and whether Ctrl-C ended it."""
    import asyncio
    import resource
    import signal

    from truthgpt_serve.bench.session import Session, find_model
    from truthgpt_serve.cli._bench_plan import read_plan, read_targets, with_requests

    plan = read_plan(options)
    targets = [
        await find_model(target, plan.endpoint, timeout_s=plan.timeout_s, fields=plan.fields)
        for target in read_targets(options)
    ]
    plan = await with_requests(plan, options, targets[0])
    _, most_files = resource.getrlimit(resource.RLIMIT_NOFILE)  # each request has a connection
    resource.setrlimit(resource.RLIMIT_NOFILE, (most_files, most_files))
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def end_early() -> None:
        if stop.is_set():  # the second Ctrl-C does not wait
            loop.remove_signal_handler(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        stop.set()

    loop.add_signal_handler(signal.SIGINT, end_early)
    try:
        with console.progress(plan, targets) as (on_begin, on_done):
            results = await Session(plan, targets, stop, on_begin, on_done).run()
    finally:
        loop.remove_signal_handler(signal.SIGINT)
    return results, stop.is_set()


def _exit_code(results: list[dict[str, Any]], allowed_percent: float) -> int:
    failed = sum(result["failed"] for result in results)
    total = failed + sum(result["completed"] for result in results)
    return EXIT_FAILED if failed * 100 > allowed_percent * total or not total else 0
