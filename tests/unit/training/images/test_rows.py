"""Pictures, captions and random numbers of image training."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.support.training_images import EDGE, make_cfg, run, save_pictures, save_pipeline
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.images import pictures as pictures_module
from truthgpt_serve.training.images import sources
from truthgpt_serve.training.images.facts import read_facts
from truthgpt_serve.training.images.pictures import PictureError, load_picture
from truthgpt_serve.training.images.rows import Pictures, hub_rows, load_pictures
from truthgpt_serve.training.images.samples import Samples
from truthgpt_serve.training.images.sampling_order import (
    Order,
    draw_for_evaluation,
    draw_for_training,
)

SHAPE = (4, 2, 2)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pictures(tmp_path_factory.mktemp("data") / "pictures")


@pytest.fixture(scope="module")
def sd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline("sd", tmp_path_factory.mktemp("sd"))


def _file(picture: Image.Image, form: str = "PNG", **more: Any) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, form, **more)
    return buffer.getvalue()


def test_a_picture_is_resized_and_cut_in_the_centre() -> None:
    picture = Image.new("RGB", (300, 100), "red")
    picture.paste("blue", (100, 0, 200, 100))
    pixels = load_picture(_file(picture), EDGE)
    assert pixels.shape == (3, EDGE, EDGE)
    # Rings of the filter at the two edges are left out.
    assert (pixels[:, :, 3:-3] == np.array([0, 0, 255])[:, None, None]).all()
    same = load_picture({"bytes": _file(picture), "path": "x.png"}, EDGE)
    assert (same == pixels).all()


def test_transparency_is_laid_over_white_and_pictures_stand_upright() -> None:
    clear = Image.new("RGBA", (EDGE, EDGE), (255, 0, 0, 0))
    assert (load_picture(_file(clear), EDGE) == 255).all()
    sideways = Image.new("RGB", (EDGE, EDGE), "black")
    sideways.paste("white", (0, 0, EDGE, EDGE // 2))
    turned = Image.Exif()
    turned[0x0112] = 3  # upside down
    pixels = load_picture(_file(sideways, exif=turned), EDGE)
    assert pixels[0, 0, 0] == 0
    assert pixels[0, -1, 0] == 255


def test_a_huge_picture_is_refused_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures_module, "MAX_PIXELS", 99)
    with pytest.raises(PictureError, match=r"10x10 pixels; at most 99"):
        load_picture(_file(Image.new("L", (10, 10))), EDGE)
    # As large as PIL refuses by itself: a header is enough.
    header = bytearray(_file(Image.new("1", (8, 8)), "BMP"))
    header[18:26] = (50_000).to_bytes(4, "little") * 2
    with pytest.raises(PictureError, match="pixels"):
        load_picture(bytes(header), EDGE)


@pytest.mark.parametrize("image", [b"no picture", None, 7, {"bytes": None, "path": None}])
def test_what_is_no_picture_is_refused(image: Any) -> None:
    with pytest.raises(PictureError):
        load_picture(image, EDGE)


def _with_damage(folder: Path) -> Path:
    save_pictures(folder)
    whole = (folder / "2.png").read_bytes()
    (folder / "2.png").write_bytes(whole[: len(whole) // 2])
    return folder


@pytest.mark.parametrize("cached_bytes", [2**30, 0], ids=["cached", "decoded-each-time"])
def test_a_bad_picture_is_named_with_its_line_or_skipped(
    cached_bytes: int, sd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "MAX_CACHED_BYTES", cached_bytes)
    data = _with_damage(tmp_path / "pictures")
    with pytest.raises(TrainingError, match=r"metadata\.jsonl:3: .*2\.png.*cannot be decoded"):
        run(make_cfg(sd, data), tmp_path / "stopped")
    skipping = make_cfg(sd, data, data={"on_bad_row": "skip"})
    assert len(run(skipping, tmp_path / "skipped").losses) == 8


def test_cached_latents_give_the_same_losses(
    sd: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = make_cfg(sd, pictures, data={"eval_share": 0.25})
    cached = run(cfg, tmp_path / "cached")
    monkeypatch.setattr(sources, "MAX_CACHED_BYTES", 0)
    decoded = run(cfg, tmp_path / "decoded")
    assert decoded.losses == pytest.approx(cached.losses, rel=1e-4)
    assert decoded.evaluations == pytest.approx(cached.evaluations, rel=1e-4)


def test_rows_of_parquet_hold_pictures(sd: Path, pictures: Path, tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    lines = (pictures / "metadata.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    table = {
        "image": [
            {"bytes": (pictures / row["file_name"]).read_bytes(), "path": None} for row in rows
        ],
        "text": [row["text"] for row in rows],
    }
    parquet.write_table(arrow.table(table), tmp_path / "rows.parquet")
    one = run(make_cfg(sd, pictures), tmp_path / "folder")
    other = run(make_cfg(sd, tmp_path / "rows.parquet"), tmp_path / "parquet")
    assert other.losses == pytest.approx(one.losses, rel=1e-6)


def test_rows_of_the_hub_are_decoded_here(sd: Path, pictures: Path) -> None:
    datasets = pytest.importorskip("datasets")
    files = [(pictures / f"{index}.png").read_bytes() for index in range(3)]
    columns = {"image": [*files, b"no picture"], "text": list("abcd")}
    features = datasets.Features({"image": datasets.Image(), "text": datasets.Value("string")})
    source = datasets.Dataset.from_dict(columns, features=features)
    rows = hub_rows("someone/squares", source)
    data = make_cfg(sd, pictures)["data"]
    found = Pictures(rows, range(4), data)
    pixels, captions = found.get([0, 2])
    assert captions == ["a", "c"]
    assert (pixels[1].numpy() == load_picture(pictures / "2.png", EDGE)).all()
    with pytest.raises(TrainingError, match=r"someone/squares: row 4: .*cannot be decoded"):
        found.get([3])


def test_evaluation_is_the_same_every_time(sd: Path, pictures: Path, tmp_path: Path) -> None:
    # With hardly any learning between them, evaluations differ by hardly anything.
    training = {"learning_rate": 1e-12, "eval_every": 2, "caption_dropout": 0.5}
    cfg = make_cfg(sd, pictures, training=training, data={"eval_share": 0.4})
    evaluations = run(cfg, tmp_path / "run").evaluations
    assert len(evaluations) == 4
    assert evaluations == pytest.approx([evaluations[0]] * 4, rel=1e-5)
    larger = {**training, "eval_batch_size": 1}
    cfg = make_cfg(sd, pictures, training=larger, data={"eval_share": 0.4})
    assert run(cfg, tmp_path / "other").evaluations == pytest.approx(evaluations, rel=1e-5)


def test_the_split_is_by_the_seed_and_shares_no_row(sd: Path, pictures: Path) -> None:
    def captions(seed: int) -> tuple[set[str], set[str]]:
        cfg = make_cfg(sd, pictures, data={"eval_share": 0.25}, seed=seed)
        one, other = load_pictures(cfg)
        assert other is not None
        return tuple({part.caption(row) for row in range(len(part))} for part in (one, other))  # type: ignore[return-value] # a pair

    train, held_out = captions(1)
    assert (len(train), len(held_out)) == (6, 2)
    assert not train & held_out
    assert captions(1) == (train, held_out)
    assert any(captions(seed) != (train, held_out) for seed in range(2, 5))


class _Captions:
    """A data set of captions only."""

    def __len__(self) -> int:
        return 1000

    def get(self, rows: Any) -> tuple[Any, list[str]]:
        return None, [str(row) for row in rows]


def _draw(position: int) -> Any:
    return draw_for_training(7, position, SHAPE)


def test_the_asked_share_of_captions_is_dropped() -> None:
    samples = Samples(_Captions(), lambda position: position, _draw, 0.3)
    batch = samples.__getitems__(list(range(1000)))
    dropped = [caption is None for caption in batch["captions"]]
    # Three standard deviations of 1000 draws.
    assert np.mean(dropped) == pytest.approx(0.3, abs=0.044)
    again = samples.__getitems__([5])
    assert (again["captions"][0] is None) == dropped[5]
    assert (again["noise"][0] == batch["noise"][5]).all()


def test_levels_of_an_evaluation_cover_all_noise() -> None:
    levels = sorted(draw_for_evaluation(1, row, SHAPE).level for row in range(20))
    gaps = np.diff([0.0, *levels, 1.0])
    assert gaps.max() < 0.12
    again = draw_for_evaluation(1, 3, SHAPE)
    assert (again.noise == draw_for_evaluation(1, 3, SHAPE).noise).all()


def test_noise_is_normal_and_differs_by_seed_and_position() -> None:
    values = np.concatenate([_draw(position).noise.ravel() for position in range(500)])
    assert values.mean() == pytest.approx(0, abs=0.04)
    assert values.std() == pytest.approx(1, abs=0.03)
    assert (_draw(1).noise != _draw(2).noise).all()
    assert (draw_for_training(8, 1, SHAPE).noise != _draw(1).noise).all()


def test_every_pass_has_every_row_once_whoever_reads_it() -> None:
    def rows(num_workers: int, accumulation: int) -> list[set[int]]:
        order = Order(12, 3, 2, accumulation, num_workers)
        streams = [list(order.micro_batches(rank, 0, 6)) for rank in range(num_workers)]
        steps = []
        for step in range(6):
            turns = slice(step * accumulation, (step + 1) * accumulation)
            taken = [one for stream in streams for batch in stream[turns] for one in batch]
            assert len(taken) == len(set(taken)) == order.step_size
            steps.append({order.row(position) for position in taken})
        return steps

    alone, shared = rows(1, 2), rows(2, 1)
    assert alone == shared
    passes = [set().union(*alone[start : start + 3]) for start in (0, 3)]
    assert passes == [set(range(12))] * 2
    assert alone[:3] != alone[3:]


def test_the_plan_says_which_images_are_left_out_and_which_rows_are_bad(
    sd: Path, tmp_path: Path
) -> None:
    folder = save_pictures(tmp_path / "pictures")
    (folder / "extra.png").write_bytes((folder / "0.png").read_bytes())
    (folder / ".thumbs").mkdir()
    with (folder / "metadata.jsonl").open("a") as stream:
        stream.write('{"file_name": "gone.png", "text": "a cat"}\n')
    facts = read_facts(make_cfg(sd, folder, data={"on_bad_row": "skip"}), sd)
    assert facts.num_examples == 8
    assert facts.sources[:3] == [
        "reads    metadata.jsonl",
        "left out .thumbs (hidden)",
        "left out extra.png (no usable line of metadata.jsonl names it)",
    ]
    assert "skipped  1 bad rows, such as" in facts.sources[3]
    assert "gone.png" in facts.sources[3]
