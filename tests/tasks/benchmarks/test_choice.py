"""MMBench, SEED-Bench, MMMU, ScienceQA and IconQA from original files; protocols equal recorded scripts."""

from __future__ import annotations

import csv
import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.inference.conftest import LLM, SIZES
from vlm.common.errors import DataError
from vlm.common.registry import resolve
from vlm.common.types import Image, Message, Text
from vlm.inference.engine import Engine
from vlm.systems.minigpt4.template import Vicuna0
from vlm.tasks.benchmarks.base import Questions
from vlm.tasks.benchmarks.standard.base import StandardOptions
from vlm.tasks.benchmarks.standard.choice import mmmu
from vlm.tasks.benchmarks.standard.choice.letters import by_first_match, by_letter_or_text
from vlm.tasks.benchmarks.standard.choice.mmbench import TURN, MMBench
from vlm.tasks.benchmarks.standard.choice.scienceqa import ScienceQa
from vlm.tasks.benchmarks.standard.choice.seed_bench import SeedBench
from vlm.tasks.benchmarks.standard.items import Item, asked
from vlm.tasks.benchmarks.standard.stored import score_file
from vlm.tasks.scoring.statistics import interval
from vlm.testing import tiny_engine

from .answered import base64_png, numbers, png, recorded, said


@pytest.fixture(autouse=True)
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tested is not the intervals."""
    monkeypatch.setattr("vlm.tasks.benchmarks.numbers.interval", partial(interval, draws=20))


@pytest.fixture(scope="module")
def engine() -> Engine:
    return tiny_engine(LLM, Vicuna0(Vicuna0.Config()), **SIZES | {"max_position_embeddings": 512})


COLUMNS = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "l2-category", "split"]


@pytest.fixture
def mmbench(tmp_path: Path) -> Path:
    """Rows of every order; a later order names the row that holds the image."""
    rows = [dict(row) for row in recorded("mmbench")["rows"]]
    for row in rows:
        row["image"] = base64_png(row["index"]) if row["index"] < TURN else str(row["index"] % TURN)
    return table(tmp_path / "MMBench_dev_EN.tsv", rows)


def table(path: Path, rows: list[dict]) -> Path:
    with path.with_name(path.name.replace("dev", "DEV")).open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, delimiter="\t", extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    return path.parent


def test_circular_evaluation_equals_vlmevalkit_and_lmms(mmbench: Path) -> None:
    known = recorded("mmbench")
    answers = {str(row["index"]): row["prediction"] for row in known["rows"]}
    found = numbers("mmbench", mmbench, answers)
    assert found["metrics"]["circular"] == known["official"]["Overall"]
    for label, kind in (("circular", "l2_"), ("circular by category", "cat")):
        groups = {name: one["value"] for name, one in found["by_group"][label].items()}
        assert groups == {name: v for name, v in known["official"].items() if name.startswith(kind)}
    assert found["metrics"]["own order"] > found["metrics"]["circular"]
    lmms = numbers("mmbench", mmbench, answers, protocol="lmms")
    assert lmms["metrics"]["circular"] == known["lmms"]["overall"]
    assert {k: v["value"] for k, v in lmms["by_group"]["circular"].items()} == known["lmms"]["l2"]


@pytest.mark.parametrize("case", recorded("mmbench")["reads"], ids=lambda case: case["answer"][:24] or "empty")
def test_letters_are_read_as_both_scripts_read_them(case: dict) -> None:
    item = Item("1", "q", (), choices=tuple(recorded("mmbench")["choices"]))
    assert by_letter_or_text(case["answer"], item) == case["official"]
    assert by_first_match(case["answer"], item) == case["lmms"]


def test_mmbench_is_asked_as_both_ask_and_orders_are_made_where_there_are_none(mmbench: Path, tmp_path: Path) -> None:
    opened = MMBench.open(str(mmbench), "", StandardOptions())
    assert opened.prompts[0] == recorded("mmbench")["official_prompts"]["nan"]
    first = next(item for item in opened.items if int(item.id) == TURN)
    assert first.media == opened.items[0].media and first.choices[0] == "thing 0 two"
    lmms = MMBench.open(str(mmbench), "", StandardOptions(protocol="lmms"))
    assert lmms.prompts[0] == recorded("mmbench")["lmms_prompts"]["nan"]
    rows = [row | {"image": base64_png(3)} for row in recorded("mmbench")["rows"] if row["index"] < TURN]
    (tmp_path / "own").mkdir()
    made = MMBench.open(str(table(tmp_path / "own" / "MMBench_dev_EN.tsv", rows)), "", StandardOptions())
    assert [(i.id, i.choices, i.references) for i in sorted(made.items, key=lambda i: int(i.id))] == [
        (i.id, i.choices, i.references) for i in sorted(opened.items, key=lambda i: int(i.id))
    ]
    hinted = [rows[0] | {"hint": "See the sky."}]
    data = str(table(tmp_path / "own" / "MMBench_dev_EN.tsv", hinted))
    for protocol in ("official", "lmms"):
        own = MMBench.open(data, "", StandardOptions(protocol=protocol))
        assert own.prompts[0] == recorded("mmbench")[f"{protocol}_prompts"]["See the sky."]


def test_an_mmbench_split_without_answers_is_written_for_the_server(mmbench: Path, tmp_path: Path) -> None:
    rows = [dict(row, answer="", image=base64_png(1)) for row in recorded("mmbench")["rows"][:7]]
    file = table(tmp_path / "MMBench_dev_EN.tsv", rows) / "MMBench_DEV_EN.tsv"
    answers = {str(row["index"]): row["prediction"] for row in rows}
    found = score_file(MMBench, str(file), "", [said(tmp_path, answers)], StandardOptions(split="test"))
    assert found.scores["metrics"] == {} and list(found.files) == ["mmbench_submission.tsv"]
    lines = list(csv.DictReader(found.files["mmbench_submission.tsv"].splitlines(), delimiter="\t"))
    assert [line["prediction"] for line in lines] == [row["prediction"] for row in rows]
    assert lines[3]["D"] == "thing 1 four" and lines[0]["D"] == ""


def test_an_order_that_failed_leaves_the_question_out_unless_another_is_wrong(mmbench: Path) -> None:
    known = recorded("mmbench")["rows"]
    answers = {str(row["index"]): row["answer"] for row in known} | {"1": "B" if known[3]["answer"] == "A" else "A"}
    answers |= {str(TURN): "", str(TURN + 1): ""}
    found = numbers("mmbench", mmbench, answers, empty="error")
    assert found["errors"] == 2 and found["metrics"]["circular"] == pytest.approx(10 / 11)  # question 0 is left out


def test_faults_of_multiple_choice_files_are_one_message(scienceqa: Path, tmp_path: Path) -> None:
    row = dict(recorded("mmbench")["rows"][0], image=base64_png())
    for change, message in (
        ({"answer": "E"}, "index 0: answer 'E' of 3 options"),
        ({"index": "first"}, "not the annotations of MMBench"),
    ):
        data = table(tmp_path / "MMBench_dev_EN.tsv", [row | change])
        with pytest.raises(DataError, match=message):
            MMBench.open(str(data), "", StandardOptions())
    (tmp_path / "MMBench_DEV_EN.tsv").write_text("index\tquestion\n1\twhat?\n")
    with pytest.raises(DataError, match="not the annotations of MMBench .record 1: KeyError: 'image'"):
        MMBench.open(str(tmp_path), "", StandardOptions())
    with pytest.raises(DataError, match="KeyError: 'val'"):
        ScienceQa.open(str(scienceqa), "", StandardOptions(split="val"))
    (scienceqa / "pid_splits.json").write_text(json.dumps({"test": ["0", "77"]}))
    with pytest.raises(DataError, match="problem 77 of test is not there"):
        ScienceQa.open(str(scienceqa), "", StandardOptions())


def test_a_missing_image_is_an_error_that_is_counted(scienceqa: Path, engine: Engine) -> None:
    (scienceqa / "test" / "3" / "image.png").unlink()
    for choose in ("generate", "likelihood"):
        options = StandardOptions(choose=choose, empty="wrong", max_new_tokens=2, batch_size=8)  # type: ignore[arg-type]
        opened = ScienceQa.open(str(scienceqa), "", options)
        found = ScienceQa().run(engine, Questions(opened, max_bad_share=0.1), options)
        assert (found.scores["count"], found.scores["errors"]) == (23, 1)
        assert [p.id for p in found.predictions if p.error and "image.png" in p.error] == ["3"]


@pytest.fixture
def seed_bench(tmp_path: Path) -> Path:
    names = {"Scene": 1, "Counting": 2, "Action": 3}
    docs = [doc | {"data_id": f"{doc['question_id']}.png"} for doc in recorded("seed_bench")["docs"]]
    for doc in docs:
        (tmp_path / doc["data_id"]).write_bytes(png(int(doc["question_id"])))
    (tmp_path / "SEED-Bench.json").write_text(json.dumps({"question_type": names, "questions": docs}))
    return tmp_path


def test_seed_bench_equals_lmms_and_ranks_texts_by_itself(seed_bench: Path, engine: Engine) -> None:
    known = recorded("seed_bench")
    for split in ("all", "image", "video"):
        own = {
            d["question_id"]: a for d, a in zip(known["docs"], known["answers"], strict=True)
            if split in ("all", d["data_type"])
        }  # fmt: skip
        found = numbers("seed_bench", seed_bench, own, split=split, protocol="lmms")
        assert found["metrics"]["accuracy"] == known["lmms"][f"seed_{split}"]
    assert set(found["by_group"]["accuracy"]) <= {"Scene", "Counting", "Action"}
    options = StandardOptions(batch_size=4)
    opened = SeedBench.open(str(seed_bench), "", options)
    assert opened.prompts[0] == "Question: What 1?\nAnswer:"
    found = SeedBench().run(engine, Questions(opened), options)
    asked = [list(opened[k].messages) for k in range(len(opened))]
    sums = engine.log_likelihoods(asked, [item.choices for item in opened.items], end=True)
    assert [p.answer for p in found.predictions] == ["ABCD"[max(range(4), key=s.__getitem__)] for s in sums]
    assert found.scores["unread"] == 0
    lmms = SeedBench.open(str(seed_bench), "", StandardOptions(protocol="lmms", split="all"))
    assert lmms.prompts[0] == known["lmms_prompt"]


def written_mmmu(folder: Path) -> Path:
    import pyarrow
    import pyarrow.parquet

    by_subject: dict[str, list[dict]] = {}
    for sample in recorded("mmmu")["samples"]:
        answer = sample["answer"] if isinstance(sample["answer"], str) else str(sample["answer"])
        record = {k: sample[k] for k in ("id", "question_type")} | {"question": "What is it?", "answer": answer}
        record |= {"options": str(list(sample.get("index2ans", {}).values()))}
        record |= {"image_1": {"bytes": png(len(by_subject)), "path": None}, "image_2": None}
        by_subject.setdefault(sample["id"].removeprefix("validation_").rsplit("_", 1)[0], []).append(record)
    for subject, records in by_subject.items():
        (folder / subject).mkdir(parents=True)
        pyarrow.parquet.write_table(
            pyarrow.Table.from_pylist(records), folder / subject / "validation-00000-of-00001.parquet"
        )
    return folder


@pytest.mark.parametrize("protocol", ["official", "lmms"])
def test_mmmu_equals_both_scripts_with_their_guesses(tmp_path: Path, protocol: str) -> None:
    known = recorded("mmmu")
    data = written_mmmu(tmp_path / "MMMU")
    answers = {sample["id"]: sample["response"] for sample in known["samples"]}
    options = StandardOptions(protocol=protocol, empty="wrong")
    found = score_file(resolve("benchmark", "mmmu"), str(data), "", [said(tmp_path, answers)], options)
    right = {p.id: p.right for p in found.predictions}
    assert [right[sample["id"]] for sample in known["samples"]] == known[protocol]["right"]
    accuracy = found.scores["metrics"]["accuracy"]
    assert accuracy == known["official"]["accuracy"] if protocol == "official" else (
        round(accuracy, 5) == known["lmms"]["rounded"]
    )  # fmt: skip
    assert set(found.scores["by_group"]["accuracy"]) == {
        "Art and Design", "Business", "Health and Medicine", "Humanities and Social Science", "Science",
    }  # fmt: skip
    assert "Public_Health" in found.scores["by_group"]["accuracy by subject"]
    assert json.loads(found.files["mmmu_submission.json"])["validation_Accounting_1"] == "A"


def test_mmmu_shows_images_where_the_text_names_them(tmp_path: Path) -> None:
    known = recorded("mmmu")
    records = [
        {**q, "image_1": "1.png", "image_2": "2.png", "image_3": "3.png"}
        for q in (known["questions"][0] | {"question": "Is <image 2> like <image 1>, not <image 2>?"},)
    ]
    (tmp_path / "validation.json").write_text(json.dumps([*known["questions"], *records]))
    (tmp_path / "answer_dict_val.json").write_text(json.dumps({"validation_Art_1": {"ground_truth": "B"}}))
    for record in known["questions"]:
        record |= {"image_1": "1.png", "image_2": "2.png"}
    lines = [*known["questions"], records[0] | {"id": "validation_Art_3"}]
    (tmp_path / "validation.json").write_text(json.dumps(lines))
    opened = {p: mmmu.Mmmu.open(str(tmp_path), "", StandardOptions(protocol=p)) for p in ("official", "lmms")}
    places = {"<image 1>": "<image>", "<image 2>": "<image>"}
    for found, text in zip(opened["official"].prompts, known["prompts"]["official"], strict=False):
        for name, place in places.items():
            text = text.replace(name, place)
        assert found == text
    assert opened["lmms"].prompts[:2] == known["prompts"]["lmms"]
    both, open_question, mixed = opened["official"].items
    assert both.references == "B" and open_question.references == "3"  # the file of answers comes first
    assert [Path(m.source).name for m in mixed.media] == ["2.png", "1.png"]
    shown = asked(mixed, opened["official"].prompts[2])
    kinds = [type(part) for part in shown.parts]
    assert kinds == [Text, Image, Text, Image, Text] and "not image 2?" in shown.parts[-1].text


def test_faults_of_mmmu_are_one_message(tmp_path: Path) -> None:
    record = recorded("mmmu")["questions"][0] | {"image_1": "1.png"}
    for change, message in (
        ({"answer": "E"}, "answer 'E' of 2 options"),
        ({"options": "x, y("}, "is not a list"),
        ({"id": None, "options": 5}, "not the annotations of MMMU"),
    ):
        (tmp_path / "validation.json").write_text(json.dumps([record | change]))
        with pytest.raises(DataError, match=message):
            mmmu.Mmmu.open(str(tmp_path), "", StandardOptions())
    (tmp_path / "dev-00000-of-00001.parquet").write_bytes(b"none")
    with pytest.raises(DataError, match="Parquet"):
        mmmu.Mmmu.open(str(tmp_path), "", StandardOptions(split="dev"))


@pytest.fixture
def scienceqa(tmp_path: Path) -> Path:
    problems = recorded("scienceqa")["problems"]
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": list(problems), "train": list(problems)}))
    for name, problem in problems.items():
        if problem["image"]:
            (tmp_path / "test" / name).mkdir(parents=True)
            (tmp_path / "test" / name / "image.png").write_bytes(png(int(name) * 9))
    return tmp_path


def test_scienceqa_equals_llava_the_benchmark_and_lmms(scienceqa: Path) -> None:
    known = recorded("scienceqa")
    found = numbers("scienceqa", scienceqa, known["answers"])
    labels = {"average": "accuracy", "has_text": "with a text", "has_image": "with an image"}
    labels |= {"no_context": "without context"}
    for theirs, ours in labels.items():
        assert round(found["metrics"][ours] * 100, 2) == known["official"][theirs]
    subjects = {"natural science": "natural", "social science": "social", "language science": "language"}
    for name, one in found["by_group"]["accuracy"].items():
        assert round(one["value"] * 100, 2) == known["official"][subjects[name]]
    for name, one in found["by_group"]["accuracy by grade"].items():
        assert round(one["value"] * 100, 2) == known["official"][f"grade_{name.replace('-', '_')}"]
    images = {k: v for k, v in known["answers"].items() if known["problems"][k]["image"]}
    only = numbers("scienceqa_img", scienceqa, images)
    assert round(only["metrics"]["accuracy"] * 100, 2) == known["llava"]["image"]
    lmms = numbers("scienceqa", scienceqa, known["answers"], protocol="lmms")
    assert lmms["metrics"]["accuracy"] == pytest.approx(sum(known["lmms"]) / len(known["lmms"]), abs=1e-12)
    for protocol in ("official", "lmms"):
        prompts = ScienceQa.open(str(scienceqa), "", StandardOptions(protocol=protocol)).prompts
        recorded_prompts = list(known[f"{protocol}_prompts"].values())
        assert prompts[: len(recorded_prompts)] == recorded_prompts


def test_scienceqa_letters_are_the_indices_that_llava_reads(scienceqa: Path) -> None:
    known = recorded("scienceqa")
    options = StandardOptions(empty="wrong")
    found = score_file(ScienceQa, str(scienceqa), "", [said(scienceqa, known["answers"])], options)
    for prediction in found.predictions:
        read = prediction.fields.get("read", prediction.answer)
        assert ("ABCDE".index(read) if read else -1) == known["indices"][prediction.id]


def test_result_files_with_numbers_of_options_are_read(scienceqa: Path, tmp_path: Path) -> None:
    known = recorded("scienceqa")
    (tmp_path / "own.json").write_text(json.dumps({"acc": 37.5, "results": known["indices"], "outputs": {}}))
    found = score_file(ScienceQa, str(scienceqa), "", [str(tmp_path / "own.json")], StandardOptions())
    assert round(found.scores["metrics"]["accuracy"] * 100, 2) == known["official"]["average"]
    assert found.scores["unread"] == list(known["indices"].values()).count(-1)


@pytest.mark.parametrize("protocol", ["official", "published"])
def test_iconqa_of_stored_answers(tmp_path: Path, protocol: str) -> None:
    choices = ["one", "two and a half", "ten"]
    records = [{"image_id": str(k), "question": f"{k}?", "choices": choices, "answer": k % 3} for k in range(6)]
    file = tmp_path / "choose_text_val.json"
    file.write_text(json.dumps(records))
    said = dict(zip("012345", ["A", " B\n", "two", "D", "B", "A"]))
    found = numbers("iconqa", file, said, protocol=protocol)
    assert found["metrics"] == {"accuracy": 3 / 6} and found["unread"] == 2  # 0, 1 and 4


def test_iconqa_in_both_layouts_is_ranked(tmp_path: Path, engine: Engine) -> None:
    records = [
        {
            "image_id": str(k // 2),
            "question": f"How many {k}?",
            "choices": ["one", "two and a half", "ten"],
            "answer": 1,
        }
        for k in range(4)
    ]
    (tmp_path / "choose_text_val.json").write_text(json.dumps(records))
    problems = {str(k): records[k] | {"ques_type": "choose_txt", "split": "val"} for k in range(4)}
    problems["9"] = {"ques_type": "fill_in_blank"}
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"val": ["0", "2", "9"]}))
    for k in range(2):
        (tmp_path / str(k)).mkdir()
        (tmp_path / str(k) / "image.png").write_bytes(png(k * 100))
    kind: Any = resolve("benchmark", "iconvqa")
    options = StandardOptions(batch_size=2)
    opened = kind.open(str(tmp_path), "", options)
    assert opened.prompts[0].startswith("[vqa] Based on the image") and len(opened) == 4
    found = kind().run(engine, Questions(opened), options)
    asked = [list(opened[k].messages) for k in range(4)]
    ranked = [r for k in (0, 2) for r in engine.rank(asked[k : k + 2], [i.choices for i in opened.items[k : k + 2]])]
    assert [p.answer for p in found.predictions] == ["ABC"[r.best] for r in ranked]
    assert found.scores["protocol"] == "published"
    assert [i.id for i in kind.open(str(tmp_path / "problems.json"), "", options).items] == ["0", "2"]
    records[0]["answer"] = "one"
    (tmp_path / "choose_text_val.json").write_text(json.dumps(records))
    with pytest.raises(DataError, match="question 0: answer 'one' of 3 choices"):
        kind.open(str(tmp_path), "", options)


@pytest.mark.parametrize("shots", [0, 4, 8])
def test_examples_before_a_question_are_never_the_question(scienceqa: Path, shots: int) -> None:
    options = StandardOptions(shots=shots, shots_path=str(scienceqa), seed=3)
    one, same = (ScienceQa.open(str(scienceqa), "", options) for _ in range(2))
    other = ScienceQa.open(str(scienceqa), "", StandardOptions(**{**vars(options), "seed": 4}))
    for number, item in enumerate(one.items):
        messages = one[number].messages
        assert len(messages) == 2 * shots + 1 and messages == same[number].messages
        for example in messages[:-1:2]:
            assert example.media != item.media or item.question not in example.text
        assert all(len(m.text) == 1 for m in messages[1:-1:2])  # a letter
    assert (one.shots == other.shots) == (shots == 0)


@pytest.mark.parametrize(
    ("name", "choose"),
    [
        ("llama", "generate"),
        ("llama", "likelihood"),
        ("OpenFlamingo", "likelihood"),
        pytest.param("OpenFlamingo", "generate", marks=pytest.mark.heavy),
    ],
)
def test_few_shot_multiple_choice_through_an_engine(
    scienceqa: Path, tmp_path: Path, name: str, choose: str, engine: Engine
) -> None:
    from tests.equivalence.batching_subjects import SUBJECTS

    model = engine if name == "llama" else SUBJECTS[name].make(tmp_path)
    options = StandardOptions(
        shots=2,
        empty="wrong",
        shots_path=str(scienceqa),
        limit=4,
        choose=choose,
        max_new_tokens=3,
        batch_size=4,  # type: ignore[arg-type]
    )
    opened = ScienceQa.open(str(scienceqa), "", options)
    seen: list[list[Message]] = []
    encode = model.processor.encode_chat
    model.processor.encode_chat = lambda messages: seen.append(list(messages)) or encode(messages)  # type: ignore
    try:
        found = ScienceQa().run(model, Questions(opened), options)
    finally:
        del model.processor.encode_chat
    assert (found.scores["count"], found.scores["errors"]) == (4, 0)
    assert seen and all(len(messages) == 5 for messages in seen)
    if choose == "likelihood":
        assert all(p.answer in "ABCD" for p in found.predictions)
