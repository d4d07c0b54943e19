"""Every way in which a row can be bad: it stops the run with its place, or is counted."""

from __future__ import annotations

import io
import json
import zlib
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.training_runs import job_of, sections_of
from truthgpt_serve.config import load_model_config
from truthgpt_serve.training.data import BadRows, Inventory, hub, read_rows, streams
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images.data.image_files import ImageFileError, Size, load_image
from truthgpt_serve.training.images.data.load import load_images
from truthgpt_serve.training.text.prepare import prepare, train_table

SQUARE = Size(8, 8)
GOOD: dict[str, Any] = {
    "sft": {"text": "Ada finds the river."},
    "chat": {"text": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes"}]},
    "dpo": {"prompt": "Who? ", "chosen": "Ada.", "rejected": "Ben."},
    "dpo-chat": {"prompt": [{"role": "user", "content": "Who?"}], "chosen": "A", "rejected": "B"},
    "grpo": {"prompt": "Who? ", "answer": {"name": "Ada", "score": 1}},
}
VALUES = {
    "half-pair": ('"a \\ud83d b"', "half a surrogate pair"),
    "nul": ('"a \\u0000 b"', "NUL character"),
    "number": ("7", "must be text, found a number"),
    "not-a-number": ("NaN", "must be text, found a number"),
    "null": ("null", "found nothing"),
    "truth": ("true", "found true or false"),
    "empty-text": ('" "', "is empty"),
    "object": ("{}", "found an object"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model") / "llama")


def sections(model: Path, data: Path, kind: str, on_bad_row: str) -> dict[str, Any]:
    method = kind.split("-")[0] if kind != "chat" else "sft"
    training: dict[str, Any] = {"method": method}
    if method == "grpo":
        training["reward"] = "tests.support.training_rewards:counts_the"
    return sections_of(model, data, training=training, data={"on_bad_row": on_bad_row})


def check_bad(model: Path, folder: Path, kind: str, line: str, problem: str) -> None:
    """Checks that a line among good ones is a bad row of `kind`."""
    good = json.dumps(GOOD[kind])
    data = folder / "a.jsonl"
    data.write_text("\n".join([good, line, good]) + "\n", encoding="utf-8")
    with pytest.raises(TrainingError) as caught:
        prepare(job_of(folder / "stop", sections(model, data, kind, "stop")))
    message = str(caught.value)
    assert message.startswith(f"{data}:2: ")
    assert problem in message
    assert message.encode()
    assert len(message) < 1500
    facts = prepare(job_of(folder / "skip", sections(model, data, kind, "skip")))
    assert (facts.num_examples, facts.num_bad_rows) == (2, 1)
    assert problem in facts.bad_rows[0]


def with_value(kind: str, key: str, value: str) -> str:
    """Returns a good row's JSON with another value at one place, lists by `key.0`."""
    row = json.loads(json.dumps(GOOD[kind]))
    *path, last = key.split(".")
    inner = row
    for name in path:
        inner = inner[int(name)] if isinstance(inner, list) else inner[name]
    inner[last] = "@"
    return json.dumps(row).replace('"@"', value)


@pytest.mark.parametrize("name", list(VALUES))
@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("sft", "text"),
        ("dpo", "prompt"),
        ("dpo", "chosen"),
        ("dpo", "rejected"),
        ("grpo", "prompt"),
    ],
)
def test_a_text_that_is_none(name: str, kind: str, key: str, model: Path, tmp_path: Path) -> None:
    value, problem = VALUES[name]
    check_bad(model, tmp_path, kind, with_value(kind, key, value), problem)


CHAT_PLACES = [
    ("chat", "text.1.content"),
    ("chat", "text.0.role"),
    ("dpo-chat", "prompt.0.content"),
]


@pytest.mark.parametrize("name", [name for name in VALUES if name != "empty-text"])
@pytest.mark.parametrize(("kind", "key"), CHAT_PLACES)
def test_a_message_that_is_none(
    name: str, kind: str, key: str, model: Path, tmp_path: Path
) -> None:
    value, problem = VALUES[name]
    check_bad(model, tmp_path, kind, with_value(kind, key, value), problem)


@pytest.mark.parametrize(
    ("kind", "line", "problem"),
    [
        ("chat", '{"text": [{"role": "user", "content": "a", "\\ud83d": 1}]}', "surrogate"),
        ("grpo", '{"prompt": "a", "\\ud83d": 1}', "surrogate"),
        ("grpo", '{"prompt": "a", "answer": {"x": ["\\ud83d"]}}', "answer.x[0] is not valid"),
        ("grpo", '{"prompt": "a", "answer": ' + "[" * 80 + "]" * 80 + "}", "nested more than 64"),
        ("sft", '{"story": "\\ud83d", "\\udfff": 1}', "has no 'text' column"),
        ("sft", "[" * 100_000, "nested too deeply"),
        ("sft", '{"text": ' + "9" * 5000 + "}", "is not JSON"),
        ("sft", "{" + ", ".join(f'"column{n}": 1' for n in range(5000)) + "}", "and 4,980 more"),
        ("sft", '{"text": "' + "x" * 2000, "is not JSON"),
    ],
)
def test_a_row_that_is_none(
    kind: str, line: str, problem: str, model: Path, tmp_path: Path
) -> None:
    check_bad(model, tmp_path, kind, line, problem)


def test_columns_of_grpo_may_change_their_kind(model: Path, tmp_path: Path) -> None:
    answers = [1, 2.5, "three", None, {"a": [1]}, [1, "x"], True]
    lines = [json.dumps({"prompt": "Who? ", "answer": answer}) for answer in answers]
    data = tmp_path / "a.jsonl"
    data.write_text("\n".join(lines), encoding="utf-8")
    job = job_of(tmp_path / "run", sections(model, data, "grpo", "stop"))
    prepare(job)
    assert [row["answer"] for row in train_table(job)] == answers


def test_a_column_that_comes_late_is_not_lost_in_silence(model: Path, tmp_path: Path) -> None:
    good = '{"prompt": "a"}\n'
    data = tmp_path / "a.jsonl"
    data.write_text(good * 1000 + '{"prompt": "a", "late": 1}\n' + good, encoding="utf-8")
    with pytest.raises(TrainingError, match=r"a\.jsonl:1001: has a column 'late'"):
        prepare(job_of(tmp_path / "run", sections(model, data, "grpo", "stop")))


def test_a_line_without_an_end_is_a_bad_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "MAX_LINE_BYTES", 1 << 20)
    file = tmp_path / "a.jsonl"
    long = b'{"text": "' + b"x" * (5 << 19) + b'"}'
    file.write_bytes(b'{"text": "a"}\n' + long + b'\n{"text": "b"}\n' + long)
    bad_rows = BadRows("skip")
    rows = list(read_rows(str(file), bad_rows))
    assert [row.place for row in rows] == [f"{file}:1", f"{file}:3"]
    assert bad_rows.shown == [f"{file}:{n}: is a line of more than 1 MiB" for n in (2, 4)]


def test_text_in_utf16_is_refused_and_a_mark_of_utf8_is_not(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"text": "a"}\r\n\xef\xbb\xbf\r\n')
    bad_rows = BadRows("skip")
    (row,) = read_rows(str(file), bad_rows)
    assert row.values == {"text": "a"}
    file.write_bytes('{"text": "a"}'.encode("utf-16"))
    with pytest.raises(TrainingError, match=r"a\.jsonl: is UTF-16 text \(save it as UTF-8\)"):
        list(read_rows(str(file), BadRows("stop")))


def test_damaged_pages_of_parquet_are_bad_rows(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    texts = [f"text {n} {'x' * 50}" for n in range(3000)]
    parquet.write_table(arrow.table({"text": texts}), file, row_group_size=1000, compression="gzip")
    start = parquet.ParquetFile(file).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(file.read_bytes())
    content[start + 60 : start + 200] = bytes(140)
    file.write_bytes(content)
    bad_rows = BadRows("skip")
    rows = list(read_rows(str(file), bad_rows))
    assert [row.values["text"] for row in rows] == texts[:1000] + texts[2000:]
    assert bad_rows.count == 1000
    assert bad_rows.shown[0].startswith(f"{file}: rows 1001 to 2000: cannot be decoded")
    with pytest.raises(TrainingError, match="rows 1001 to 2000"):
        list(read_rows(str(file), BadRows("stop")))


def _invalid() -> arrow.Array:
    binary = arrow.array([b"good", b"\xff\xfe", b"fine"], type=arrow.binary())
    return binary.view(arrow.string())


def test_text_of_tables_that_is_not_utf8_is_a_bad_row(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"text": _invalid()}), file)
    bad_rows = BadRows("skip")
    rows = list(read_rows(str(file), bad_rows))
    assert [row.values["text"] for row in rows] == ["good", "fine"]
    assert bad_rows.shown[0].startswith(f"{file}: row 2: cannot be decoded")


def test_rows_of_the_hub_that_cannot_be_decoded_are_bad_rows(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = arrow.table({"text": _invalid(), "image": [b"no image"] * 3})
    source = datasets.Dataset(table).cast_column("image", datasets.Image())
    monkeypatch.setattr(
        datasets, "load_dataset", lambda *_: datasets.DatasetDict(train=source, test=source)
    )
    given = sections(model, Path("someone/texts"), "sft", "skip")
    facts = prepare(job_of(tmp_path / "run", given))
    assert (facts.num_examples, facts.num_bad_rows) == (2, 1)
    assert facts.bad_rows[0].startswith("someone/texts: row 2: cannot be decoded")
    assert facts.sources[:3] == [
        "reads    someone/texts, split train",
        "left out someone/texts, split test (another split)",
        "format   text: recognized by the columns 'text'; not read: 'image'",
    ]
    rows = list(hub.read_hub("someone/texts", None, "validation", Inventory()))
    assert rows[2].values["image"]["bytes"] == b"no image"


def png(image: Image.Image, form: str = "PNG", **more: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **more)
    return buffer.getvalue()


def _no_size() -> bytes:
    content = bytearray(png(Image.new("RGB", (8, 8))))
    content[16:24] = bytes(8)
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    return bytes(content)


def _cut() -> bytes:
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    return png(Image.fromarray(noise), "JPEG")[:1500]


FRAMES: dict[str, Any] = {"save_all": True, "append_images": [Image.new("RGB", (8, 8), "red")]}
BAD_IMAGES = {
    "empty": b"",
    "cut": _cut(),
    "no-size": _no_size(),
    "animated-png": png(Image.new("RGB", (8, 8)), **FRAMES),
    "animated-webp": png(Image.new("RGB", (8, 8)), "WEBP", **FRAMES),
    "gif": png(Image.new("RGB", (8, 8)), "GIF"),
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "too-many-pixels": png(Image.new("1", (20_000, 20_000))),
}


@pytest.mark.parametrize("name", list(BAD_IMAGES))
def test_an_image_that_is_none(name: str) -> None:
    with pytest.raises(ImageFileError):
        load_image(BAD_IMAGES[name], SQUARE)


def test_damage_anywhere_in_an_image_is_a_bad_row() -> None:
    draw = np.random.default_rng(1)
    noise = draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)
    for form in ("PNG", "JPEG", "WEBP", "BMP"):
        whole = png(Image.fromarray(noise), form)
        for _ in range(150):
            content = bytearray(whole[: draw.integers(0, len(whole) + 1)])
            for place in draw.integers(0, max(1, len(content)), 5 if content else 0):
                content[place] = draw.integers(0, 256)
            try:
                pixels = load_image(bytes(content), SQUARE).pixels
            except ImageFileError:
                continue
            assert pixels.shape == (3, 8, 8)


def test_other_color_models_are_read_as_they_look() -> None:
    ramp = np.linspace(0, 65535, 64).astype(np.uint16).reshape(8, 8)
    deep = load_image(png(Image.fromarray(ramp)), SQUARE).pixels
    assert np.abs(deep[0].astype(int) - np.round(ramp / 257.0)).max() <= 1
    inks = Image.new("RGB", (8, 8), (200, 30, 60)).convert("CMYK")
    pixels = load_image(png(inks, "JPEG", quality=95), SQUARE).pixels
    assert np.abs(pixels[:, 4, 4].astype(int) - (200, 30, 60)).max() < 12
    gray = load_image(png(Image.new("LA", (8, 8), (100, 255))), SQUARE).pixels
    assert (gray == 100).all()


@pytest.mark.parametrize("image", ["/" + "x" * 5000, "a\0b", "\ud83d.png", "/dev/zero", "/tmp"])
def test_a_path_that_is_no_image(image: str) -> None:
    with pytest.raises(ImageFileError) as caught:
        load_image(image, SQUARE)
    assert "does not exist" in caught.value.message


@pytest.mark.parametrize("name", ["half-pair", "nul", "number", "null", "empty-text"])
def test_a_caption_that_is_none(name: str, tmp_path: Path) -> None:
    value, problem = VALUES[name]
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    good = '{"file_name": "a.png", "text": "a cat"}'
    (tmp_path / "metadata.jsonl").write_text(
        f"{good}\n{good.replace(chr(34) + 'a cat' + chr(34), value)}\n"
    )
    cfg = load_model_config({"task": "image-generation"}).to_cfg()
    data = {**cfg["data"], "dataset": str(tmp_path), "resolution": 8}
    with pytest.raises(TrainingError, match=f"metadata.jsonl:2: .*{problem}"):
        load_images({**cfg, "data": data})
    sources: list[str] = []
    images, _ = load_images({**cfg, "data": {**data, "on_bad_row": "skip"}}, sources)
    assert len(images) == 1
    assert problem in "\n".join(sources)
