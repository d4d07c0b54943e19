"""The form of the file with the keys; its faults name places and show no key."""

from __future__ import annotations

import math
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from truthgpt_serve.access.credentials import create_key
from truthgpt_serve.access.identity import Limits
from truthgpt_serve.access.key_file import read_keys, reread_keys
from truthgpt_serve.config.source import MAX_FILE_BYTES
from truthgpt_serve.errors import ConfigError

A, B = "a" * 64, "b" * 64


def write(folder: Path, text: str) -> Path:
    path = folder / "keys.yaml"
    path.write_text(text)
    return path


def test_every_field(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        f"""
keys:
- name: team
  sha256: {A}
  created: 2026-11-27
  expires: 2027-01-31T00:00:00Z
  models: [story, "sh*", org/a:b]
  requests_per_minute: 1
  tokens_per_minute: 2
  image_megapixel_steps_per_minute: 2.5
  max_concurrent: 3
  priority: -1
  admin: true
  previous: {{sha256: {B}, until: 2026-12-01}}
""",
    )
    (entry,) = read_keys(path).keys
    again = reread_keys(path)
    assert again is not None
    assert again.keys == [entry]
    identity = entry.to_identity()
    assert identity.limits == Limits(1, 2, 2.5, 3)
    assert (identity.name, identity.priority, identity.admin) == ("team", -1, True)
    assert identity.models == ("story", "sh*", "org/a:b")
    assert identity.expires_s == 1801353600
    plain = write(tmp_path, f"keys: [{{name: x, sha256: {A}}}]")
    assert read_keys(plain).keys[0].to_identity().expires_s == math.inf


def test_limits_that_cannot_be_reckoned_with_are_refused(tmp_path: Path) -> None:
    """Requests of the key, and the metrics of all keys, would fail."""
    path = write(tmp_path, f"keys: [{{name: x, sha256: {A}, tokens_per_minute: 1{'0' * 400}}}]")
    for read in (read_keys, reread_keys):
        with pytest.raises(ConfigError, match=r"keys\[0\].tokens_per_minute: is too large"):
            read(path)


@pytest.mark.parametrize(
    "text",
    ["", "keys: []", "# nothing", "cached_token_weight: 0.5", "---", "null", "---\n# none\n"],
)
def test_no_keys(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, text)
    again = reread_keys(path)
    assert read_keys(path).keys == []
    # Without content it is one that is about to be written.
    assert (None if again is None else again.keys) == ([] if ":" in text else None)


def test_the_beginning_of_a_file_that_is_too_large_does_not_count(tmp_path: Path) -> None:
    """Cut off at the limit, it would be valid, without the keys behind that."""
    head = f"keys:\n- name: a\n  sha256: {A}\n"
    text = f"{head}#{'x' * MAX_FILE_BYTES}\n- name: b\n  sha256: {B}\n"
    for read in (read_keys, reread_keys):
        with pytest.raises(ConfigError, match="is larger than 1048576 bytes"):
            read(write(tmp_path, text))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "latin-1"])
def test_both_ways_take_the_same_encodings(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "keys.yaml"
    path.write_bytes(f"# é\nkeys: [{{name: a, sha256: {A}}}]".encode(encoding))
    if encoding == "utf-8-sig":  # Windows' editors begin a file so
        again = reread_keys(path)
        assert again is not None
        assert [key.name for key in read_keys(path).keys] == [key.name for key in again.keys]
        return
    for read in (read_keys, reread_keys):
        with pytest.raises(ConfigError, match="not UTF-8 text"):
            read(path)


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("keys: [", ":1: is not valid YAML"),
        ("- a", "must be a mapping"),
        ("kyes: []", ":1: kyes: unknown field"),
        (f"keys: [{{name: a, sha256: {A}, keys: 1}}]", "keys[0].keys: unknown field"),
        (f"keys: [{{name: a/b, sha256: {A}}}]", "keys[0].name"),
        (f"keys: [{{sha256: {A}}}]", "keys[0].name: is required"),
        (f"keys: [{{name: a, sha256: {A}, admin: true, admin: false}}]", "admin: is given twice"),
        ("keys: [&a {name: a, of: *a}]", "an alias repeats itself"),
        ("keys: [{name: a}]", "keys[0].sha256: is required"),
        (f"keys: [{{name: a, sha256: {A[1:]}}}]", "keys[0].sha256: is not a SHA-256"),
        (f"keys: [{{name: a, sha256: {A}, expires: never}}]", "keys[0].expires: is no moment"),
        (f"keys: [{{name: a, sha256: {A}, models: []}}]", "keys[0].models: must not be empty"),
        (f"keys: [{{name: a, sha256: {A}, models: ['?']}}]", "keys[0].models[0]: is no pattern"),
        (f"keys: [{{name: a, sha256: {A}, max_concurrent: 0}}]", "keys[0].max_concurrent"),
        (f"keys: [{{name: a, sha256: {A}, priority: 101}}]", "keys[0].priority"),
        (
            f"keys: [{{name: a, sha256: {A}}}, {{name: a, sha256: {B}}}]",
            "keys[1].name: is given twice, first at keys[0]",
        ),
        (
            f"keys: [{{name: a, sha256: {A}}}, {{name: b, sha256: {A}}}]",
            "keys[1].sha256: is given twice",
        ),
    ],
)
def test_faults(tmp_path: Path, text: str, place: str) -> None:
    path = write(tmp_path, text)
    for read in (read_keys, reread_keys):
        with pytest.raises(ConfigError) as raised:
            read(path)
        assert len(raised.value.faults) == 1
        assert place in raised.value.message


def test_a_key_in_the_place_of_its_hash_is_not_shown(tmp_path: Path) -> None:
    key = create_key()
    for text in (f"keys: [{{name: a, sha256: {key}}}]", f"keys: [{{name: a, key: {key}}}]"):
        with pytest.raises(ConfigError) as raised:
            read_keys(write(tmp_path, text))
        assert key not in raised.value.message
        assert key[:20] not in raised.value.message


@pytest.mark.parametrize(
    "text",
    [
        "{key}",
        "keys: [{key}]",
        "{key}: team",
        "{key}: 1\n{key}: 2",
        "keys: *{key}",
        "keys: !{key} x",
        "cached_token_weight: {key}",
        "keys: [{{name: a, sha256: b, model_limits: {{x: {{{key}: 1}}}}}}]",
    ],
)
def test_a_key_anywhere_in_a_file_with_faults_is_not_shown(tmp_path: Path, text: str) -> None:
    key = create_key()
    path = write(tmp_path, text.format(key=key))
    for read in (read_keys, reread_keys):
        with pytest.raises(ConfigError) as raised:
            read(path)
        shown = "".join(traceback.format_exception(raised.value))
        assert "keys.yaml:" in shown
        assert key[5:25] not in shown


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_keys(tmp_path / "none.yaml")


REREAD = """
import sys
from pathlib import Path
from truthgpt_serve.access.key_file import reread_keys
from truthgpt_serve.errors import ConfigError
try:
    reread_keys(Path(sys.argv[1]))
except ConfigError as error:
    print(error)
"""


@pytest.mark.parametrize(
    "text", ["keys: " + "[" * 100_000, "- " * 100_000, "keys: " + "{a: " * 50_000]
)
def test_a_file_that_is_nested_without_end_is_a_fault(tmp_path: Path, text: str) -> None:
    # In a process of its own: PyYAML's loader in C overflows the stack, which ends the process.
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    ran = subprocess.run(
        [sys.executable, "-c", REREAD, str(path)], capture_output=True, text=True, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert "is nested too deeply" in ran.stdout


def test_brackets_in_a_comment_do_not_make_a_file_deep(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text("# " + "[" * 1000 + "\nkeys: []\n")
    file = reread_keys(path)
    assert file is not None
    assert not file.keys
