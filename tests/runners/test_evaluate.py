"""run_evaluation on a configuration: numbers returned and written."""

import json
from types import SimpleNamespace

import pytest
from PIL import Image

from vlm.common.errors import ConfigError, WeightsError
from vlm.config.run import RunConfig
from vlm.config.types import Config, DatasetEntry, Part
from vlm.datasets.formats.table.table import Table
from vlm.runners.evaluate.run import run_evaluation

from ..equivalence.tiny import DATA, Tiny
from ..tasks.asked import Asked


class Engine(Asked):
    """Answers with the colour of the pixel it is shown."""

    config = None
    processor = SimpleNamespace(image=SimpleNamespace(config=SimpleNamespace(size=8)))

    def default_generation(self, base):
        return base

    def generate(self, conversations, generation, batch_size=16):
        found = []
        for messages in conversations:
            media = messages[-1].media
            red = bool(media) and Image.open(media[0].source).getpixel((0, 0))[0] > 128
            found.append("red" if red else "blue")
        return found


@pytest.fixture
def cfg(tmp_path):
    rows = []
    for i, color in enumerate(["red", "blue", "red", "blue", "red"]):
        Image.new("RGB", (4, 4), color).save(tmp_path / f"{i}.png")
        row = {"id": f"q{i}", "image": f"{i}.png", "question": "What color?", "answer": color, "type": "color"}
        rows.append({**row, "objects": 1 + i % 2, "unseen_pair": i == 4})
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    part = Part("table", Table.Config(str(tmp_path / "qa.jsonl"), str(tmp_path)))
    entries = {name: DatasetEntry(name, part, batch_size=7) for name in ("held_out", "other")}
    run = RunConfig(output_dir=str(tmp_path / "out"), name="numbers")
    return Config(model=None, run=run, evaluation_datasets=entries)


def test_all_datasets_and_controls_are_scored_and_written(cfg, tmp_path):
    engine = Engine()
    found = run_evaluation(cfg, engine=engine, images=("right", "none"))
    assert sorted(found) == ["held_out", "other"] and sorted(found["other"]) == ["none", "right"]
    right = found["held_out"]["right"]
    assert right["overall"] == 1.0 and right["majority"]["overall"] == 0.6 and right["counts"]["unseen_pairs"] == 1
    assert found["held_out"]["none"]["overall"] == 0.4
    assert json.loads((tmp_path / "out" / "numbers.json").read_text()) == found
    lines = [json.loads(x) for x in (tmp_path / "out" / "numbers_answers.jsonl").read_text().splitlines()]
    assert len(lines) == 20
    assert lines[0] == {
        "dataset": "held_out", "image": "right", "id": "q0", "question": "What color?", "answer": "red",
        "reference": "red", "right": True, "type": "color", "objects": 1, "unseen_pair": False,
        "media": [str(tmp_path / "0.png")],
    }  # fmt: skip


def test_one_dataset_into_another_folder(cfg, tmp_path):
    found = run_evaluation(cfg, engine=Engine(), datasets=["other"], output=tmp_path / "x", batch_size=2)
    assert list(found) == ["other"] and (tmp_path / "x" / "numbers.json").exists()


def test_unknown_dataset(cfg):
    with pytest.raises(ConfigError, match=r"has no third \(known: held_out, other\)"):
        run_evaluation(cfg, engine=Engine(), datasets=["third"])
    cfg.evaluation_datasets = {}
    with pytest.raises(ConfigError, match="known: none"):
        run_evaluation(cfg, engine=Engine())


def shown(cfg, **more):
    lines = []
    run_evaluation(cfg, show=lines.append, **more)
    return lines


def test_table_shows_types_and_majority(cfg):
    (text,) = shown(cfg, engine=Engine(), datasets=["other"])
    assert "all             100.0%   majority   60.0%        5 questions" in text
    assert "color" in text and "unseen pairs" in text


def test_questions_without_answers_are_written_and_not_scored(cfg, tmp_path):
    (tmp_path / "open.jsonl").write_text('{"question": "What is odd here?", "question_id": 7}\n')
    options = Table.Config(str(tmp_path / "open.jsonl"), fields={"id": "question_id"}, assistant=None)
    cfg.evaluation_datasets = {"open": DatasetEntry("open", Part("table", options))}
    lines: list[str] = []
    found = run_evaluation(cfg, engine=Engine(), output=tmp_path / "out", show=lines.append)
    assert (found["open"]["right"]["overall"], found["open"]["right"]["count"]) == (None, 0)
    assert "no question has a reference answer" in lines[0]
    (line,) = (tmp_path / "out" / "numbers_answers.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == "7" and json.loads(line)["reference"] == ""


def test_the_model_of_the_configuration_is_loaded(tmp_path):
    rows = [{"image": f"{i}.jpg", "question": "What?", "answer": "boat", "type": "what"} for i in (2, 3, 4)]
    (tmp_path / "qa.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    tiny = Tiny(tmp_path)
    build = {"ann_path": str(tmp_path / "qa.jsonl"), "image_path": str(DATA / "data" / "cc_sbu_align" / "image")}
    entry = {"format": "table", "build_info": build, "batch_size": 2, "max_new_tokens": 3}
    tiny.config.write_text(tiny.config.read_text() + f"evaluation_datasets:\n  qa: {json.dumps(entry)}\n")
    with pytest.raises(WeightsError, match=r"random, no file of model.weights fills it[\s\S]*--allow-random"):
        run_evaluation(tiny.load("out"))
    found = run_evaluation(tiny.load("out"), images=("right", "wrong"), allow_random=True)
    assert found["qa"]["right"]["count"] == found["qa"]["wrong"]["count"] == 3
    assert found["qa"]["right"]["majority"]["overall"] == 1.0
    lines = (tmp_path / "out" / "evaluation_answers.jsonl").read_text().splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["0", "1", "2"] * 2
