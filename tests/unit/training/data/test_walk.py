"""What is read of a folder of data, what is left out, and what is refused."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from truthgpt_serve.training.data import BadRows, Inventory, data_fingerprint, read_rows
from truthgpt_serve.training.data import walk as walk_module
from truthgpt_serve.training.errors import TrainingError


def put(folder: Path, *names: str, content: str | None = None) -> Path:
    """Writes files whose one row is their name."""
    for name in names:
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        row = name if name.lower().endswith(".txt") else json.dumps({"text": name})
        file.write_text(row + "\n" if content is None else content, encoding="utf-8")
    return folder


def read(folder: Path, **more: Any) -> tuple[list[str], str]:
    """Returns the texts of the rows, and the plan's lines."""
    inventory = Inventory()
    rows = list(read_rows(str(folder), BadRows("stop"), inventory=inventory, **more))
    return [row.values["text"] for row in rows], "\n".join(inventory.lines())


@pytest.mark.parametrize(
    "other",
    [
        "b.json", "b.csv", "b.tsv", "b.csv.gz", "b.arrow", "b.parquet.gz", "b.jsonl.bz2", "b.zip",
        "b.tar.gz", "B.CSV", "deep/b.json", "b.txt", "b.parquet", "README.txt", "b.text", "b.xlsx",
    ],
)  # fmt: skip
def test_data_that_cannot_be_read_with_the_rest_is_refused_by_name(
    other: str, tmp_path: Path
) -> None:
    put(tmp_path, "a.jsonl", other)
    with pytest.raises(TrainingError) as caught:
        read(tmp_path, content="text")
    assert other in str(caught.value)
    assert "several kinds" in str(caught.value)


def test_upper_case_suffixes_are_the_same(tmp_path: Path) -> None:
    put(tmp_path, "a.jsonl", "B.JSONL", "c.JsonL")
    assert read(tmp_path)[0] == ["B.JSONL", "a.jsonl", "c.JsonL"]
    file = put(tmp_path / "x", "D.TXT") / "D.TXT"
    assert read(file)[0] == ["D.TXT"]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (".ipynb_checkpoints/a-checkpoint.jsonl", "hidden"),
        ("._a.jsonl", "hidden"),
        (".git/objects/a.jsonl", "hidden"),
        (".DS_Store", "hidden"),
        ("__MACOSX/a.jsonl", "a tool's folder"),
        ("a.jsonl~", "copy"),
        ("a.jsonl.bak", "copy"),
        ("#a.jsonl#", "copy"),
        ("~$a.txt", "copy"),
        ("a copy.jsonl", "copy"),
        ("a (copy).jsonl", "copy"),
        ("Copy of a.jsonl", "copy"),
        ("a.jsonl.part", "copy"),
        ("README.md", "not data by its name"),
        ("run.py", "not data by its name"),
        ("dataset_infos.json", "not data by its name"),
        ("plot.png", "an image"),
        ("test.jsonl", "split test"),
        ("test.csv", "split test"),
        ("dev/b.jsonl", "split validation"),
        ("empty.jsonl", "empty"),
        ("a.jsonl.gz", "the compressed form of a file that is read"),
        ("runs/x/run.json", "the folder of a training run"),
    ],
)
def test_what_is_no_training_data_is_left_out_and_named(
    name: str, reason: str, tmp_path: Path
) -> None:
    put(tmp_path, "a.jsonl")
    put(tmp_path, name, content="" if name.startswith("empty") else None)
    texts, plan = read(tmp_path, content="text")
    assert texts == ["a.jsonl"]
    left_out = [line for line in plan.splitlines() if line.startswith("left out ")]
    assert len(left_out) == 1
    assert reason in left_out[0]
    assert name.split("/")[0] in left_out[0]
    assert "reads    a.jsonl" in plan


@pytest.mark.parametrize("name", ["requirements.txt", "README.txt", "LICENSE.txt", "readme_en.txt"])
def test_a_projects_own_texts_are_no_data(name: str, tmp_path: Path) -> None:
    put(tmp_path, name)
    with pytest.raises(TrainingError, match=f"holds no data; left out: {name}"):
        read(tmp_path)
    put(tmp_path, "a.txt")
    texts, plan = read(tmp_path)
    assert texts == ["a.txt"]
    assert f"left out {name}" in plan


TRAIN_NAMES = ["train.jsonl", "training.jsonl", "train-00000-of-00002.jsonl", "train/0.jsonl",
               "stories_train.jsonl", "data/train-0.jsonl", "Train.jsonl",
               "train2.jsonl"]  # fmt: skip
HELD_OUT = ["validation.jsonl", "valid.jsonl", "val.jsonl", "dev.jsonl", "eval.jsonl",
            "validation-00000-of-00001.jsonl", "val/0.jsonl", "stories-valid.jsonl",
            "val2017/0.jsonl", "TEST.jsonl", "test/0.jsonl", "test-00000-of-00001.jsonl",
            "data/test-0.jsonl", "stories_test_v2.jsonl"]  # fmt: skip


@pytest.mark.parametrize("train", TRAIN_NAMES)
def test_only_the_training_split_is_trained_on(train: str, tmp_path: Path) -> None:
    put(tmp_path, train, *HELD_OUT)
    assert read(tmp_path)[0] == [train]


@pytest.mark.parametrize("held_out", HELD_OUT)
def test_the_other_splits_are_evaluated_on(held_out: str, tmp_path: Path) -> None:
    put(tmp_path, "train.jsonl", held_out)
    assert read(tmp_path)[0] == ["train.jsonl"]
    assert read(tmp_path, split="validation")[0] == [held_out]


def test_validation_comes_before_test_and_a_folder_without_splits_is_whole(tmp_path: Path) -> None:
    put(tmp_path / "a", "train.jsonl", "validation.jsonl", "test.jsonl")
    assert read(tmp_path / "a", split="validation")[0] == ["validation.jsonl"]
    put(tmp_path / "b", "x.jsonl", "latest.jsonl", "contest.jsonl", "evaluate.jsonl")
    everything = ["contest.jsonl", "evaluate.jsonl", "latest.jsonl", "x.jsonl"]
    assert read(tmp_path / "b")[0] == read(tmp_path / "b", split="validation")[0] == everything


@pytest.mark.parametrize(
    ("names", "split", "message"),
    [
        (["test.jsonl", "validation.jsonl"], "train", "only data to evaluate on: test.jsonl, vali"),
        (["train.jsonl"], "validation", "no split to evaluate on"),
        (["train_val.jsonl"], "train", "train_val.jsonl names several splits"),
        (["train/test-1.jsonl"], "train", "names several splits"),
        (["train.jsonl", "test.jsonl", "all.jsonl"], "train", "cannot tell the split of all.jsonl"),
    ],
)
def test_a_split_that_cannot_be_told_is_refused(
    names: list[str], split: str, message: str, tmp_path: Path
) -> None:
    put(tmp_path, *names)
    with pytest.raises(TrainingError, match=message):
        read(tmp_path, split=split)
    # Whoever names a file means it.
    assert read(tmp_path / names[0], split=split)[0] == [names[0]]


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    data = put(tmp_path / "data", "a.jsonl", "deep/b.jsonl")
    put(tmp_path / "elsewhere", "c.jsonl")
    (data / "loop").symlink_to(data)
    (data / "deep" / "up").symlink_to("..")
    (data / "self").symlink_to("self")
    (data / "out").symlink_to(tmp_path / "elsewhere")
    (data / "twin.jsonl").symlink_to("a.jsonl")
    (data / "notes.md").symlink_to("nowhere")
    texts, plan = read(data)
    assert texts == ["a.jsonl", "deep/b.jsonl", "c.jsonl"]
    assert "twin.jsonl (a link to a file that is read)" in plan
    assert "loop, deep/up (a link to a folder that is read)" in plan
    assert "(a broken link)" in plan
    (data / "gone.jsonl").symlink_to("nowhere")
    with pytest.raises(TrainingError, match=r"broken links: gone\.jsonl"):
        read(data)


def test_folders_named_like_files_and_what_is_no_file(tmp_path: Path) -> None:
    data = put(tmp_path / "data.jsonl", "part.jsonl/a.jsonl")
    os.mkfifo(data / "pipe.jsonl")
    texts, plan = read(data)
    assert texts == ["part.jsonl/a.jsonl"]
    assert "pipe.jsonl (not a regular file)" in plan
    with pytest.raises(TrainingError, match="neither a file nor a folder"):
        read(data / "pipe.jsonl")
    with pytest.raises(TrainingError, match="neither a file nor a folder"):
        data_fingerprint(str(data / "pipe.jsonl"))


def test_messages_stay_short_however_many_files_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "a.jsonl", *(f"figure-{number:04}.png" for number in range(3000)))
    plan = read(tmp_path, content="text")[1]
    assert "and 2,995 more (an image)" in plan
    put(tmp_path, *(f"{number:04}.xml" for number in range(2000)))
    with pytest.raises(TrainingError, match=r"0004\.xml and 1,995 more") as caught:
        read(tmp_path, content="text")
    assert max(len(plan), len(str(caught.value))) < 1000
    monkeypatch.setattr(walk_module, "MAX_FILES", 100)
    with pytest.raises(TrainingError, match="over 100 files"):
        read(tmp_path)


def test_names_that_no_terminal_can_show_are_escaped(tmp_path: Path) -> None:
    name = b"b\xff\n\x1b[31m.md"
    put(tmp_path, "a.jsonl")
    (tmp_path / os.fsdecode(name)).write_text("x")
    plan = read(tmp_path)[1]
    assert plan.encode()
    assert "\x1b" not in plan
    assert len(plan.splitlines()) == 2
    data_fingerprint(str(tmp_path))


@pytest.mark.parametrize(
    "dataset", ["/" + "x" * 5000, "./a\0b", "~nobody-of-that-name/x.jsonl", "x" * 300 + ".jsonl"]
)
def test_impossible_paths_do_not_exist(dataset: str) -> None:
    with pytest.raises(TrainingError, match="does not exist"):
        list(read_rows(dataset, BadRows("stop")))
    with pytest.raises(TrainingError, match="does not exist"):
        data_fingerprint(dataset)


def test_a_pointer_in_place_of_the_data_is_told(tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 5\n"
    for name in ("a.txt", "a.jsonl", "a.parquet"):
        put(tmp_path, name, content=pointer)
        with pytest.raises(TrainingError, match="git lfs pull"):
            read(tmp_path / name)


_AS_NOBODY = """
import os, sys
from truthgpt_serve.training.data import BadRows, data_fingerprint, read_rows
from truthgpt_serve.training.errors import TrainingError
b"x".decode("utf-8-sig")  # a module of its own, which nobody may read either
if os.geteuid() == 0:
    os.seteuid(65534)
def rows(folder):
    return list(read_rows(folder, BadRows("skip")))
for ask in (rows, data_fingerprint):
    try:
        ask(sys.argv[1])
    except TrainingError as error:
        print(error)
"""


@pytest.mark.parametrize("locked", ["b.jsonl", "deep"])
def test_what_may_not_be_read_is_named(locked: str, tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and "pytest" in str(folder):
            folder.chmod(0o755)
    data = put(tmp_path / "data", "a.jsonl", "b.jsonl", "deep/c.jsonl")
    (data / locked).chmod(0)
    try:
        command = [sys.executable, "-c", _AS_NOBODY, str(data)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    finally:
        (data / locked).chmod(0o755)
    first, second = done.stdout.splitlines()
    for message in (first, second):
        assert str(data / locked) in message
        assert "Permission denied" in message


def put_images(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    return folder


def read_images(folder: Path, on_bad_row: str = "skip", **more: Any) -> tuple[list[str], str, Any]:
    inventory, bad_rows = Inventory(), BadRows(on_bad_row)
    rows = read_rows(str(folder), bad_rows, content="images", inventory=inventory, **more)
    names = [str(Path(row.values["image"]).relative_to(folder)) for row in rows]
    return names, "\n".join(inventory.lines()), bad_rows


def test_images_beside_captions_are_read_in_any_case(tmp_path: Path) -> None:
    put_images(tmp_path, "A.PNG", "b.png", ".hidden.png", ".thumbs/b.png", "c.Jpeg")
    put(tmp_path, "A.txt", "b.TXT", "lost.txt", "README.md")
    names, plan, bad_rows = read_images(tmp_path)
    assert names == ["A.PNG", "b.png"]
    assert bad_rows.shown == [f"{tmp_path / 'c.Jpeg'}: has no caption: there is no c.txt beside it"]
    assert "left out lost.txt (no image beside it has its name)" in plan
    assert ".hidden.png, .thumbs (hidden)" in plan


def test_images_that_no_line_names_are_left_out_and_named(tmp_path: Path) -> None:
    put_images(tmp_path, "a.png", "b.png", "deep/c.png")
    put(tmp_path, "a.txt")
    put(tmp_path, "Metadata.jsonl", content='{"file_name": "a.png", "text": "a"}\n')
    put(tmp_path, "deep/metadata.jsonl", content='{"file_name": "c.png", "text": "c"}\n')
    names, plan, _ = read_images(tmp_path)
    assert names == ["a.png", "deep/c.png"]
    assert "left out b.png (no usable row of metadata.jsonl, .csv or .parquet names it)" in plan
    assert "left out a.txt (the captions come from metadata.jsonl, .csv or .parquet)" in plan


@pytest.mark.parametrize(
    "other", ["metadata.csv", "captions.json", "b.gif", "b.tiff", "metadata.parquet", "b.tar"]
)
def test_captions_and_images_of_other_formats_are_refused(other: str, tmp_path: Path) -> None:
    put_images(tmp_path, "a.png", "train/b.png")
    put(tmp_path, "metadata.jsonl", content='{"file_name": "a.png", "text": "a"}\n')
    put(tmp_path, other)
    with pytest.raises(TrainingError, match=other):
        read_images(tmp_path)


def test_images_have_splits_by_their_folders_alone(tmp_path: Path) -> None:
    names = ["train/test.png", "train/validation-3.png", "test/train.png", "validation/x.png"]
    put_images(tmp_path, *names)
    put(tmp_path, *(str(Path(name).with_suffix(".txt")) for name in names))
    assert read_images(tmp_path)[0] == ["train/test.png", "train/validation-3.png"]
    assert read_images(tmp_path, split="validation")[0] == ["validation/x.png"]


def test_names_of_images_that_cannot_be_are_bad_rows(tmp_path: Path) -> None:
    bad = ["x" * 5000 + ".png", "a\\u0000.png", "\\ud83d.png", "deep"]
    lines = [f'{{"file_name": "{name}", "text": "a"}}' for name in ["a.png", *bad]]
    put_images(tmp_path, "a.png", "deep/b.png")
    put(tmp_path, "metadata.jsonl", content="\n".join(lines))
    names, _, bad_rows = read_images(tmp_path)
    assert names == ["a.png"]
    assert bad_rows.count == 4
    assert "\n".join(bad_rows.shown).encode()


def test_rows_that_name_images_are_read_as_rows(tmp_path: Path) -> None:
    put_images(tmp_path, "images/a.png")
    put(tmp_path, "rows.jsonl", content='{"image": "images/a.png", "text": "a"}\n')
    inventory = Inventory()
    (row,) = read_rows(str(tmp_path), BadRows("stop"), content="images", inventory=inventory)
    assert row.values == {"image": "images/a.png", "text": "a"}
    assert "images/a.png (an image)" in "\n".join(inventory.lines())
