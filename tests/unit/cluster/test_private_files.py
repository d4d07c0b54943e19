"""Files of a cluster are its user's alone, and a shell joins the cluster by them."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from truthgpt_serve.cli.main import main
from truthgpt_serve.cluster.environment_file import write_exports
from truthgpt_serve.cluster.private_files import (
    LINK,
    LOOPBACK_ONLY,
    TOKEN_FILE,
    find_private_folder,
    private_environment,
    write_token,
)

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def run_folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path / "run"
    if (link := tmp_path / "run" / LINK).is_symlink() and link.readlink().is_relative_to("/tmp"):
        shutil.rmtree(link.readlink(), ignore_errors=True)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_other_users_cannot_enter(run_folder: Path) -> None:
    umask = os.umask(0)
    try:
        folder = find_private_folder(run_folder)
        token = write_token(folder)
    finally:
        os.umask(umask)
    assert mode(folder) == 0o700
    assert mode(token) == 0o600
    assert mode(Path(private_environment(folder, token)["TMPDIR"])) == 0o700


def test_the_next_run_has_the_same_folder_and_another_token(run_folder: Path) -> None:
    folder = find_private_folder(run_folder)
    first = write_token(folder).read_text()
    assert find_private_folder(run_folder) == folder
    assert len(first) == 64
    assert write_token(folder).read_text() != first


def test_paths_of_sockets_stay_short(
    run_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("x" * 60)))
    folder = find_private_folder(run_folder)
    socket = "ray/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store.12"
    assert len(str(folder / socket)) < 107


@pytest.mark.parametrize("fault", ["open", "foreign", "link", "gone"])
def test_a_folder_that_others_could_have_made_is_not_used(
    run_folder: Path, tmp_path: Path, fault: str
) -> None:
    run_folder.mkdir()
    theirs = tmp_path / "theirs"
    theirs.mkdir(mode=0o700)
    target = theirs
    if fault == "open":
        theirs.chmod(0o770)
    elif fault == "foreign":
        if os.geteuid() != 0:
            pytest.skip("only root can give a folder away")
        os.chown(theirs, 65534, 65534)
    elif fault == "link":
        target = tmp_path / "link"
        target.symlink_to(theirs)
    else:
        theirs.rmdir()
    (run_folder / LINK).symlink_to(target)
    found = find_private_folder(run_folder)
    assert found not in (theirs, target)
    assert mode(found) == 0o700


def test_a_shell_reads_the_exports(tmp_path: Path) -> None:
    values = {"ONE": "a 'b' $c", "TWO": str(tmp_path)}
    write_exports(tmp_path / "environment", values)
    command = f'. {tmp_path}/environment; printf "%s\\n" "$ONE" "$TWO"'
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == list(values.values())


def run_environment(
    folder: Path, *options: str, configs: Path = ROOT / "configs"
) -> dict[str, str]:
    environment = {"TRUTHGPT_CONFIG_DIR": str(configs), "RAY_worker_niceness": "3"}
    result = CliRunner().invoke(main, ["environment", str(folder), *options], env=environment)
    assert result.exit_code == 0, result.output
    command = f"{result.output}\nenv -0"
    done = subprocess.run(["sh", "-c", command], env={}, capture_output=True, text=True, check=True)
    return dict(line.partition("=")[::2] for line in done.stdout.split("\0") if line)


def test_the_command_prints_what_ray_needs(run_folder: Path) -> None:
    values = run_environment(run_folder)
    folder = find_private_folder(run_folder)
    assert values["RAY_AUTH_MODE"] == "token"
    assert values["RAY_AUTH_TOKEN_PATH"] == str(run_folder / TOKEN_FILE)
    assert values["RAY_TMPDIR"] == str(folder)
    assert LOOPBACK_ONLY.items() <= values.items()
    assert values["RAY_SERVE_HAPROXY_BINARY_PATH"].endswith("truthgpt-haproxy")
    assert "RAY_worker_niceness" not in values  # set by the shell already
    token = (run_folder / TOKEN_FILE).read_text()
    run_environment(run_folder)
    assert (run_folder / TOKEN_FILE).read_text() == token


def test_a_folder_of_models_needs_no_ray_env_of_its_own(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "own").mkdir()
    theirs = run_environment(run_folder)
    assert run_environment(run_folder, configs=tmp_path / "own") == theirs
    (tmp_path / "own" / "ray.env").write_text("RAY_SERVE_HAPROXY_MAXCONN=7\n")
    own = run_environment(run_folder, configs=tmp_path / "own")
    assert own["RAY_SERVE_HAPROXY_MAXCONN"] == "7"
    assert len(own) < len(theirs)


def test_a_node_takes_the_token_of_its_cluster(run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "head").write_text("abc\n")
    values = run_environment(run_folder, "--token-file", str(tmp_path / "head"))
    assert Path(values["RAY_AUTH_TOKEN_PATH"]).read_text() == "abc"
    assert not LOOPBACK_ONLY.keys() & values.keys()
    assert not LOOPBACK_ONLY.keys() & run_environment(run_folder, "--cluster").keys()


@pytest.mark.parametrize("content", [b"", b"\n", b"one\ntwo\n", b"one two", b"\xff\xfe"])
def test_a_file_without_a_token_is_refused(
    run_folder: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "head").write_bytes(content)
    arguments = ["environment", str(run_folder), "--token-file", str(tmp_path / "head")]
    result = CliRunner().invoke(main, arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "--token-file" in result.stderr
    assert not (run_folder / TOKEN_FILE).exists()


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = CliRunner().invoke(main, ["environment", str(tmp_path / "file" / "run")])
    assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert "cannot be used" in result.stderr


def test_ray_takes_the_loopback_address_where_it_is_told_to() -> None:
    """Also on a machine with other addresses, which Ray takes by itself, whatever it is given."""
    program = "from ray._private import services; print(services.get_node_ip_address())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **LOOPBACK_ONLY},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.strip() == "127.0.0.1"
