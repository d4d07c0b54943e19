"""Images, captions and random numbers of image training."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.training_images import EDGE, make_cfg, run, save_images, save_pipeline
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images.data import sources
from truthgpt_serve.training.images.data.buckets import one_shape
from truthgpt_serve.training.images.data.image_files import CENTER, Size, load_image
from truthgpt_serve.training.images.data.inspection import Columns
from truthgpt_serve.training.images.data.load import load_images
from truthgpt_serve.training.images.data.rows import ImageRows, hub_rows
from truthgpt_serve.training.images.facts import read_facts


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_images(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline("sd", tmp_path_factory.mktemp("sd"))


def _with_damage(folder: Path) -> Path:
    save_images(folder)
    whole = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.mark.parametrize("cached_bytes", [2**30, 0], ids=["cached", "decoded-each-time"])
def test_a_bad_image_is_named_with_its_line_or_skipped(
    cached_bytes: int, sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_CACHED_BYTES", cached_bytes)
    data = _with_damage(tmp_path / "images")
    with pytest.raises(TrainingError, match=r"metadata\.jsonl:3: .*2\.png.*cannot be decoded"):
        run(make_cfg(sd, data), tmp_path / "stopped")
    skipping = make_cfg(sd, data, data={"on_bad_row": "skip"})
    assert len(run(skipping, tmp_path / "skipped").losses) == 8


def test_cached_latents_give_the_same_losses(
    sd: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = make_cfg(sd, images, data={"eval_share": 0.25})
    cached = run(cfg, tmp_path / "cached")
    monkeypatch.setattr(sources, "MAX_CACHED_BYTES", 0)
    decoded = run(cfg, tmp_path / "decoded")
    assert decoded.losses == pytest.approx(cached.losses, rel=1e-4)
    assert decoded.evaluations == pytest.approx(cached.evaluations, rel=1e-4)


def test_rows_of_parquet_hold_images(sd: Path, images: Path, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    lines = (images / "metadata.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    table = {
        "image": [
            {"bytes": (images / row["file_name"]).read_bytes(), "path": None} for row in rows
        ],
        "text": [row["text"] for row in rows],
    }
    parquet.write_table(arrow.table(table), tmp_path / "rows.parquet")
    one = run(make_cfg(sd, images), tmp_path / "folder")
    other = run(make_cfg(sd, tmp_path / "rows.parquet"), tmp_path / "parquet")
    assert other.losses == pytest.approx(one.losses, rel=1e-6)


def test_rows_of_the_hub_are_decoded_here(sd: Path, images: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = [(images / f"{index}.png").read_bytes() for index in range(3)]
    columns = {"image": [*files, b"no image"], "text": list("abcd")}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    source = datasets.Dataset.from_dict(columns, features=features)
    rows = hub_rows("someone/squares", source)
    data = make_cfg(sd, images)["data"]
    square = Size(EDGE, EDGE)
    found = ImageRows(rows, range(4), one_shape(square, 4), Columns(data))
    batch = found.get([0, 2], [CENTER] * 2)
    assert batch["captions"] == [("a",), ("c",)]
    pixels = load_image(images / "2.png", square).pixels
    assert (batch["examples"][1].numpy() == pixels).all()
    with pytest.raises(TrainingError, match=r"someone/squares: row 4: .*cannot be decoded"):
        found.get([3], [CENTER])


def test_evaluation_is_the_same_every_time(sd: Path, images: Path, tmp_path: Path) -> None:
    # With hardly any learning between them, evaluations differ by hardly anything.
    training = {"learning_rate": 1e-12, "eval_every": 2, "caption_dropout": 0.5}
    cfg = make_cfg(sd, images, training=training, data={"eval_share": 0.4})
    evaluations = run(cfg, tmp_path / "run").evaluations
    assert len(evaluations) == 4
    assert evaluations == pytest.approx([evaluations[0]] * 4, rel=1e-5)
    larger = {**training, "eval_batch_size": 1}
    cfg = make_cfg(sd, images, training=larger, data={"eval_share": 0.4})
    assert run(cfg, tmp_path / "other").evaluations == pytest.approx(evaluations, rel=1e-5)


def test_the_split_is_by_the_seed_and_shares_no_row(sd: Path, images: Path) -> None:
    def captions(seed: int) -> tuple[set[str], set[str]]:
        cfg = make_cfg(sd, images, data={"eval_share": 0.25}, seed=seed)
        one, other = load_images(cfg)
        assert other is not None
        return tuple({part.captions(row)[0] for row in range(len(part))} for part in (one, other))  # type: ignore[return-value] # a pair

    train, held_out = captions(1)
    assert (len(train), len(held_out)) == (6, 2)
    assert not train & held_out
    assert captions(1) == (train, held_out)
    assert any(captions(seed) != (train, held_out) for seed in range(2, 5))


def test_the_plan_says_which_images_are_left_out_and_which_rows_are_bad(
    sd: Path, tmp_path: Path
) -> None:
    folder = save_images(tmp_path / "images")
    (folder / "extra.png").write_bytes((folder / "0.png").read_bytes())
    (folder / ".thumbs").mkdir()
    with (folder / "metadata.jsonl").open("a") as stream:
        stream.write('{"file_name": "gone.png", "text": "a cat"}\n')
    facts = read_facts(make_cfg(sd, folder, data={"on_bad_row": "skip"}), sd, tmp_path / "run")
    assert facts.num_examples == 8
    assert facts.sources[:3] == [
        "reads    metadata.jsonl",
        "left out .thumbs (hidden)",
        "left out extra.png (no usable row of metadata.jsonl, .csv or .parquet names it)",
    ]
    assert "skipped  1 bad rows, such as" in facts.sources[3]
    assert "gone.png" in facts.sources[3]
