from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from deployments.vllm.tiny_model import make_tiny_llama
from tests.support.training_runs import job_of, sections_of, sentences, write_rows
from truthgpt_serve.training.errors import TrainingError
from truthgpt_serve.training.loops import find_loop, load_loop
from truthgpt_serve.training.run_folder import read_json
from truthgpt_serve.training.text.prepare import eval_table, prepare, train_table


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_llama(tmp_path_factory.mktemp("model") / "llama")


ROWS = [
    ({"text": 5}, {}, "'text' must be text, found a number"),
    ({"story": "a b"}, {}, "has no 'text' column (it has 'story')"),
    ({"text": "  "}, {}, "'text' is empty"),
    ({"text": []}, {}, "'text' is empty"),
    ({"text": [{"role": "user"}]}, {}, "'text'[0].content must be text, found nothing"),
    ({"text": ["hi"]}, {}, "'text'[0] must be a message (role, content), found text"),
    ({"q": "why", "a": None}, {"prompt_field": "q", "completion_field": "a"}, "'a' must be text"),
]


@pytest.mark.parametrize(("row", "fields", "problem"), ROWS)
def test_a_row_that_cannot_be_learned_is_reported_with_its_line(
    row: dict[str, Any], fields: dict[str, Any], problem: str, model: Path, tmp_path: Path
) -> None:
    good = {"text": "Ada finds the river.", "q": "Who?", "a": "Ada."}
    data = write_rows(tmp_path / "a.jsonl", [good, row, good])
    with pytest.raises(TrainingError) as caught:
        prepare(job_of(tmp_path / "run", sections_of(model, data, data=fields)))
    assert str(caught.value).startswith(f"{data}:2: ")
    assert problem in str(caught.value)
    skip = {**fields, "on_bad_row": "skip"}
    job = job_of(tmp_path / "skipping", sections_of(model, data, data=skip))
    facts = prepare(job)
    assert (facts.num_examples, facts.num_bad_rows) == (2, 1)
    assert problem in facts.bad_rows[0]


@pytest.mark.parametrize("method", ["sft", "dpo", "kto", "orpo", "reward"])
def test_a_prompt_that_leaves_no_room_is_dropped_and_counted(
    method: str, model: Path, tmp_path: Path
) -> None:
    known: dict[str, dict[str, Any]] = {
        "sft": {"completion": "Ada."},
        "kto": {"completion": "Ada.", "label": True},
    }
    answers = known.get(method, {"chosen": "Ada.", "rejected": "Ben."})
    rows = [{"prompt": prompt, **answers} for prompt in ("Who? ", "why " * 90, "When? ")]
    data = write_rows(tmp_path / "a.jsonl", rows)
    training = {"training": {"method": method}}
    job = job_of(tmp_path / "a", sections_of(model, data, **training))
    facts = load_loop(find_loop(job.cfg)).prepare(job)
    assert (facts.num_examples, facts.num_bad_rows) == (2, 0)
    assert "1 dropped: nothing to learn" in "\n".join(facts.sources)
    data = write_rows(tmp_path / "b.jsonl", rows[1:2])
    job = job_of(tmp_path / "b", sections_of(model, data, **training))
    with pytest.raises(TrainingError, match=r"holds nothing to learn from, after 1 rows of which"):
        load_loop(find_loop(job.cfg)).prepare(job)


def test_only_the_answer_is_learned(model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", [{"q": "Who finds it? ", "a": "Ada."}])
    fields = {"prompt_field": "q", "completion_field": "a"}
    job = job_of(tmp_path / "run", sections_of(model, data, data=fields))
    prepare(job)
    row = train_table(job)[0]
    answer = [label for label in row["labels"] if label != -100]
    assert 0 < len(answer) < len(row["labels"])
    assert row["input_ids"][-len(answer) :] == answer


def test_chat_messages_go_through_the_template(model: Path, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    rows = [{"text": messages}, {"text": [*messages, messages[0]]}]
    job = job_of(tmp_path / "run", sections_of(model, write_rows(tmp_path / "a.jsonl", rows)))
    prepare(job)
    first, second = (row["input_ids"] for row in train_table(job))
    assert second[: len(first)] == first
    pair = [{"q": messages[:1], "a": "Hello"}]
    fields = {"prompt_field": "q", "completion_field": "a"}
    file = write_rows(tmp_path / "b.jsonl", pair)
    job = job_of(tmp_path / "pair", sections_of(model, file, data=fields))
    prepare(job)
    assert train_table(job)[0]["input_ids"] == first
    assert train_table(job)[0]["labels"][0] == -100


def test_packed_rows_are_full_and_in_order(model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", [{"text": text} for text in sentences(40)])
    plain = job_of(tmp_path / "plain", sections_of(model, data))
    pack = job_of(tmp_path / "pack", sections_of(model, data, data={"pack": True}))
    prepare(plain)
    facts = prepare(pack)
    joined = [token for row in train_table(plain) for token in row["input_ids"]]
    rows = [row["input_ids"] for row in train_table(pack)]
    assert {len(row) for row in rows} == {64}
    assert facts.num_examples == len(rows) == len(joined) // 64
    assert [token for row in rows for token in row] == joined[: len(rows) * 64]


def test_held_out_rows_are_the_same_each_time_and_not_trained_on(
    model: Path, tmp_path: Path
) -> None:
    texts = [f"Ada finds thing {n}." for n in range(200)]
    data = write_rows(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    found = []
    for name in ("one", "two"):
        job = job_of(tmp_path / name, sections_of(model, data, data={"eval_share": 0.1}))
        facts = prepare(job)
        held_out = eval_table(job)
        assert held_out is not None
        found.append([tuple(row["input_ids"]) for row in held_out])
        trained = {tuple(row["input_ids"]) for row in train_table(job)}
        assert not trained & set(found[-1])
        assert len(trained) + len(found[-1]) == 200
        assert facts.num_eval_examples == len(found[-1])
    assert found[0] == found[1]
    assert 5 <= len(found[0]) <= 40


def test_prepared_data_is_kept_until_something_changes(model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", [{"text": "Ada finds the river."}])
    job = job_of(tmp_path / "run", sections_of(model, data))
    prepare(job)
    before = (job.folder / "data" / "train.arrow").stat().st_mtime_ns
    prepare(job)
    assert (job.folder / "data" / "train.arrow").stat().st_mtime_ns == before
    write_rows(data, [{"text": "Ben finds the clock."}] * 2)
    assert prepare(job).num_examples == 2
    assert read_json(job.folder / "data" / "counts.json")["num_examples"] == 2


def test_rows_that_are_all_kept_to_evaluate_on_are_counted(model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", [{"text": "Ada finds it."}])
    sections = sections_of(model, data, data={"eval_share": 0.999999})
    with pytest.raises(TrainingError, match=r"after 1 examples that data\.eval_share .*\(lower"):
        prepare(job_of(tmp_path / "run", sections))


def test_data_with_nothing_to_learn_is_refused(model: Path, tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.jsonl", [{"text": 1}])
    sections = sections_of(model, data, data={"on_bad_row": "skip"})
    with pytest.raises(TrainingError, match="holds nothing to learn from, after 1 bad rows"):
        prepare(job_of(tmp_path / "run", sections))
    assert not list((tmp_path / "run" / "data").glob("*"))


def test_the_plan_says_what_is_read_and_what_is_left_out(model: Path, tmp_path: Path) -> None:
    (tmp_path / "data" / ".cache").mkdir(parents=True)
    for name in ("train.jsonl", "dev.jsonl", "test.jsonl"):
        write_rows(tmp_path / "data" / name, [{"text": f"Ada finds the {name}."}] * len(name))
    data = {"eval_dataset": str(tmp_path / "data")}
    facts = prepare(job_of(tmp_path / "run", sections_of(model, tmp_path / "data", data=data)))
    assert (facts.num_examples, facts.num_eval_examples) == (len("train.jsonl"), len("dev.jsonl"))
    assert facts.sources == [
        "reads    train.jsonl",
        "left out .cache (hidden)",
        "left out dev.jsonl (split validation, which data.eval_dataset can name)",
        "left out test.jsonl (split test)",
        "format   text: recognized by the columns 'text'",
        "evaluation: reads    dev.jsonl",
        "evaluation: left out .cache (hidden)",
        "evaluation: left out train.jsonl (split train)",
        "evaluation: left out test.jsonl (split test)",
        "evaluation: format   text: recognized by the columns 'text'",
        "example  the first one; 'learn' is what the model learns to say",
        "  learn | Ada finds the train.jsonl.<|im_end|>",
    ]
