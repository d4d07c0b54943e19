"""`truthgpt validate`: a table of bad files with their exact faults, and good files.

A file in `bad_yaml/` ends with the faults that it must give, one `# fault:` line each.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.support.configs import make_service
from truthgpt_serve import MODEL_REGISTRY
from truthgpt_serve.cli import main
from truthgpt_serve.config import load_model_config
from truthgpt_serve.errors import ConfigError
from truthgpt_serve.validate import validate_file

ROOT = Path(__file__).parents[3]
BAD = sorted((Path(__file__).parent / "bad_yaml").glob("*.yaml"))
MARK = "# fault: "


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make_service(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv("TRUTHGPT_CONFIG_DIR", raising=False)
    monkeypatch.delenv("TRUTHGPT_ACCELERATOR", raising=False)
    return tmp_path


def validate(*args: str) -> Result:
    return CliRunner().invoke(main, ["validate", *args], catch_exceptions=False)


def faults_in(result: Result) -> list[str]:
    lines = result.stderr.splitlines()
    return [line.removeprefix("fault: ") for line in lines if line.startswith("fault: ")]


def test_the_table_is_large_enough() -> None:
    assert len([path for path in BAD if path.stem.startswith("model-")]) >= 40
    assert len([path for path in BAD if path.stem.startswith("serve-")]) >= 20


@pytest.mark.parametrize("path", BAD, ids=lambda path: path.stem)
def test_bad_file_gives_exactly_its_faults(path: Path, service: Path) -> None:
    text, *faults = path.read_text(encoding="utf-8").split(MARK)
    (service / "bad.yaml").write_text(text, encoding="utf-8")
    result = validate("bad.yaml")
    families = ", ".join(MODEL_REGISTRY)
    expected = [
        fault.strip().replace("<here>", str(service)).replace("<families>", families)
        for fault in faults
    ]
    assert expected
    assert faults_in(result) == expected
    assert result.exit_code == 2


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"run_name: \xff\xfe", "bad.yaml: is not valid YAML: not UTF-8 text (save it as UTF-8)"),
        (b"run_name: \x00", "is not valid YAML: the character 0x0000 is not allowed (remove it)"),
        (b"[" * 20_000, "bad.yaml: is nested too deeply (flatten it)"),
        (b"", "bad.yaml: must be a mapping of keys to values, it is empty"),
        (b"# only a comment\n", "bad.yaml: must be a mapping of keys to values, it is empty"),
        (b"a: 1\n" * 300_000, "bad.yaml: is larger than 1048576 bytes (split it)"),
        (b"? [a, b]\n: c\n", "bad.yaml:1: a key must be plain text (quote it)"),
    ],
    ids=["not-utf8", "nul", "deep", "empty", "comment", "huge", "list-as-key"],
)
def test_unreadable_content(content: bytes, fault: str, service: Path) -> None:
    (service / "bad.yaml").write_bytes(content)
    result = validate("bad.yaml")
    assert result.exit_code == 2
    assert len(faults_in(result)) == 1
    assert fault in faults_in(result)[0]


def test_aliases_cannot_blow_up(service: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    (service / "bad.yaml").write_text("\n".join(lines), encoding="utf-8")
    result = validate("bad.yaml")
    assert result.exit_code == 2
    assert "an alias repeats itself (write the values out)" in faults_in(result)[0]


def test_missing_file_says_where_it_looked(service: Path) -> None:
    result = validate("nosuch.yaml")
    assert faults_in(result) == [
        f"nosuch.yaml: no such file; looked for {service}/nosuch.yaml and "
        f"{service}/configs/nosuch.yaml (set TRUTHGPT_CONFIG_DIR to the folder it is in)"
    ]
    assert result.exit_code == 2


def test_folder_is_not_a_file(service: Path) -> None:
    result = validate("configs")
    assert result.exit_code == 2
    assert "is a folder, not a file" in faults_in(result)[0]


GOOD_SERVE = """
http_options: {host: 127.0.0.1, port: 8100}
applications:
  - name: one
    route_prefix: /models/one
    import_path: truthgpt_serve.app:model
    args: {config: models/echo.yaml}
    deployments:
      - name: ModelReplica
        max_queued_requests: 3
        ray_actor_options: {num_cpus: 0.5}
  - name: two
    route_prefix: /models/two
    import_path: truthgpt_serve.app.model
    args:
      task: custom
      model: {family: custom, import: registers_one}
      training: {learning_rate: 5e-5, mixed_precision: no}
  - name: far
    route_prefix: /models/far
    import_path: truthgpt_serve.app:model
    runtime_env: {py_modules: ["s3://bucket/models.zip"]}
    args: {model: {family: custom, import: only_in_the_zip}}
  - name: plain
    route_prefix: /plain
    import_path: some_package.app:build
    args: {anything: 1}
  - name: router
    route_prefix: /
    import_path: truthgpt_serve.app:router
    args: {proxy_port: 8100}
"""


def test_good_service(service: Path) -> None:
    (service / "serve.yaml").write_text(GOOD_SERVE, encoding="utf-8")
    result = validate("serve.yaml")
    assert result.stderr == ""
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "ok: configs/models/echo.yaml: one: text-generation by echo",
        "ok: serve.yaml: two: custom by config-test-one",
        "ok: serve.yaml: plain: some_package.app:build (Ray's schema only)",
        "ok: serve.yaml: router: the router",
        "note: serve.yaml:23: applications[2].args.model.import: 'only_in_the_zip' comes with the "
        "application's runtime_env: its family is not checked here",
    ]


def test_faults_of_several_files_come_together(service: Path) -> None:
    (service / "one.yaml").write_text("seed: -1\nmodel: {family: echo}\n", encoding="utf-8")
    result = validate("one.yaml", "configs/models/echo.yaml", "configs/models/bad.yaml")
    assert result.exit_code == 2
    assert [fault.partition(": ")[0] for fault in faults_in(result)] == [
        "one.yaml:1",
        "configs/models/bad.yaml:3",
    ]
    assert result.stdout == "ok: configs/models/echo.yaml: text-generation by echo\n"
    assert result.stderr.endswith("2 faults\n")


def test_configs_are_found_by_the_variable(service: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = service / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "mine.yaml").write_text("model: {family: echo}\n", encoding="utf-8")
    monkeypatch.setenv("TRUTHGPT_CONFIG_DIR", str(elsewhere))
    assert validate("mine.yaml").exit_code == 0


def test_machine_without_the_hardware(service: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(service))  # no nvidia-smi: a machine without GPUs
    text = "model: {family: echo}\nhardware: {cpus: 4096, gpus: 1, accelerator_type: H100}\n"
    (service / "big.yaml").write_text(text, encoding="utf-8")
    cpus = len(os.sched_getaffinity(0))
    result = validate("--machine", "big.yaml")
    assert result.exit_code == 2
    assert faults_in(result) == [
        f"big.yaml:2: hardware.cpus: 4096 is more than this machine has, {cpus}",
        "big.yaml:2: hardware.gpus: 1 is more than this machine has, 0",
        "big.yaml:2: hardware.accelerator_type: 'H100' is none of this machine's GPUs: none",
    ]
    assert f"note: this machine: {cpus} CPU cores, GPUs: none" in result.stdout


def test_machine_reads_the_driver(service: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = service / "nvidia-smi"
    answer = "580.1, NVIDIA H100 80GB HBM3, 81559 MiB, 80000 MiB, 9.0"
    driver.write_text(f"#!/bin/sh\necho '{answer}'\n", encoding="utf-8")
    driver.chmod(0o755)
    monkeypatch.setenv("PATH", f"{service}:/bin:/usr/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    text = "model: {family: echo}\nhardware: {cpus: 0, gpus: 1, accelerator_type: H100}\n"
    (service / "big.yaml").write_text(text, encoding="utf-8")
    result = validate("--machine", "big.yaml")
    assert faults_in(result) == []
    assert "GPUs: NVIDIA H100 80GB HBM3" in result.stdout


def test_machine_counts_all_replicas(service: Path) -> None:
    application = (
        "  - name: m{n}\n    route_prefix: /models/m{n}\n"
        "    import_path: truthgpt_serve.app:model\n"
        "    args: {{model: {{family: echo}}, hardware: {{cpus: {cpus}, gpus: 0}}}}\n"
    )
    cpus = len(os.sched_getaffinity(0))
    text = "applications:\n" + "".join(application.format(n=n, cpus=cpus) for n in range(2))
    (service / "serve.yaml").write_text(text, encoding="utf-8")
    result = validate("--machine", "serve.yaml")
    assert faults_in(result) == [
        f"serve.yaml: all replicas together need {2 * cpus} CPU cores; this machine has {cpus}: "
        f"{cpus} too few (m0 {cpus}, m1 {cpus}) "
        "(lower hardware.cpus or hardware.gpus, or add nodes to the cluster)"
    ]
    alone = validate("serve.yaml")
    assert alone.exit_code == 0  # the cluster may have more machines
    assert "note: this machine alone is too small: serve.yaml: all replicas" in alone.stdout


def test_room_is_compared_without_importing_a_class(service: Path) -> None:
    module = "from truthgpt_serve.contract import FamilySpec\n"
    (service / "heavy_family.py").write_text(
        f"{module}from truthgpt_serve.registry import MODEL_REGISTRY\n"
        "MODEL_REGISTRY.register(FamilySpec(name='heavy', class_path='heavy_engine:Model'))\n"
    )
    (service / "heavy_engine.py").write_text("raise RuntimeError('imported')\n")
    text = "model: {family: heavy, import: heavy_family}\nhardware: {cpus: 4096, gpus: 0}\n"
    (service / "heavy.yaml").write_text(text, encoding="utf-8")
    result = validate("heavy.yaml")
    assert result.exit_code == 0, result.output
    assert "this machine alone is too small: heavy.yaml:2: hardware.cpus: 4096" in result.stdout


def test_shipped_files_are_right_and_import_no_engine() -> None:
    files = ["configs/serve.yaml", *sorted(map(str, Path("configs/models").glob("*.yaml")))]
    program = (
        "import sys\nfrom truthgpt_serve.cli import main\n"
        f"try: main(['validate', *{files!r}])\n"
        "except SystemExit as end: code = end.code\n"
        "bad = [name for name in ('torch', 'vllm') if name in sys.modules]\n"
        "sys.exit(f'imported {bad}' if bad else code)\n"
    )
    answer = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, timeout=60
    )
    # What a training begins with is made before it, below these folders; those of the Serve file,
    # in models/, are in the repository.
    made = re.compile(r"model\.name_or_path: '\./(runs|\.models)/[^']+' does not exist \(")
    lines = answer.stderr.splitlines()
    assert [line for line in lines if line.startswith("fault:") and not made.search(line)] == []
    assert "imported" not in answer.stderr
    assert answer.returncode in (0, 2)


@pytest.mark.parametrize(
    ("task", "family"),
    [
        ("text-generation", "vllm"),
        ("text-generation", "hf-transformers"),
        ("image-generation", "hf-diffusers"),
        ("tensor", "onnxruntime"),
    ],
)
def test_a_path_of_a_user_who_does_not_exist_is_a_fault(
    task: str, family: str, tmp_path: Path
) -> None:
    gone = "~no-such-user-here/m"
    path = tmp_path / "m.yaml"
    adapters = "" if task == "tensor" else f"serving: {{adapters: [{{name: a, path: {gone}}}]}}\n"
    path.write_text(f"task: {task}\nmodel: {{family: {family}, name_or_path: {gone}}}\n{adapters}")
    found = [str(fault) for fault in validate_file(path).faults]
    assert any("model.name_or_path" in fault and gone in fault for fault in found), found


def test_a_file_without_applications_says_what_it_would_do(service: Path) -> None:
    (service / "none.yaml").write_text("applications: []\n")
    result = validate(str(service / "none.yaml"))
    assert result.exit_code == 0
    assert "none.yaml:1: applications: is empty; applying this file ends all" in result.output


def test_cors_beside_a_models_file(tmp_path: Path) -> None:
    (tmp_path / "m.yaml").write_text("model: {family: echo}\n")
    text = (
        "applications:\n"
        "- name: m\n"
        "  route_prefix: /models/m\n"
        "  import_path: truthgpt_serve.app:model\n"
        "  args:\n"
        f"    config: {tmp_path}/m.yaml\n"
        "    cors: {allow_origins: [https://a.example]}\n"
    )
    (tmp_path / "serve.yaml").write_text(text)
    report = validate_file(tmp_path / "serve.yaml")
    assert not report.faults
    (tmp_path / "serve.yaml").write_text(text.replace("a.example", "A.example"))
    [fault] = validate_file(tmp_path / "serve.yaml").faults
    assert fault.place.endswith("serve.yaml:7: applications[0].args.cors.allow_origins[0]")
    assert fault.fix == "write https://a.example"


def test_programs_get_json(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("model: {family: echo}\n")
    bad.write_text("model: {family: ecko}\n")
    result = CliRunner().invoke(main, ["validate", "--json", str(good)])
    assert (result.exit_code, json.loads(result.stdout)["right"]) == (0, True)
    result = CliRunner().invoke(main, ["validate", "--json", str(good), str(bad)])
    assert result.exit_code == 2
    found = json.loads(result.stdout)
    assert found["right"] is False
    first, second = found["files"]
    assert (first["file"], first["faults"]) == (str(good), [])
    [fault] = second["faults"]
    assert fault["place"].endswith("bad.yaml:1: model.family")
    assert "did you mean 'echo'" in f"{fault['message']} {fault['fix']}"


def test_other_names_are_unique_in_the_whole_service(tmp_path: Path) -> None:
    def application(name: str, *aliases: str) -> str:
        return (
            f"- name: {name}\n"
            f"  route_prefix: /models/{name}\n"
            "  import_path: truthgpt_serve.app:model\n"
            f"  args: {{model: {{family: echo}}, serving: {{aliases: [{', '.join(aliases)}]}}}}\n"
        )

    path = tmp_path / "serve.yaml"
    text = application("a", "org/m:8b", "gpt-4o-mini") + application("b", '"other@1"')
    path.write_text(f"applications:\n{text}")
    assert not validate_file(path).faults
    text = application("a", "b", "x/y", "a") + application("b", "x/y", "z", "z")
    path.write_text(f"applications:\n{text}")
    found = {fault.place.partition(": ")[2]: fault.message for fault in validate_file(path).faults}
    assert set(found) == {
        "applications[0].args.serving.aliases[0]",
        "applications[0].args.serving.aliases[2]",
        "applications[1].args.serving.aliases[0]",
        "applications[1].args.serving.aliases[2]",
    }
    assert "already a model name at" in found["applications[0].args.serving.aliases[2]"]
    assert "(application a)" in found["applications[1].args.serving.aliases[0]"]
    assert "serving.aliases[1]" in found["applications[1].args.serving.aliases[2]"]


@pytest.mark.parametrize(
    "alias",
    [
        "",
        "/m",
        "m/",
        "a//b",
        "../m",
        "a/../b",
        "a b",
        "a\n",
        "a?b",
        "a#b",
        "a%2Fb",
        "é",
        "x" * 257,
        5,
    ],
)
def test_what_is_no_other_name(alias: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        load_model_config({"model": {"family": "echo"}, "serving": {"aliases": ["ok", alias]}})
    assert caught.value.faults[0].place == "configuration: serving.aliases[1]"
