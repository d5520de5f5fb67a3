"""``vlm generate``: the published file and records to the published result; any composition; videos; faults."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml

from vlm.cli.main import main
from vlm.processors.video import read as video_read

from ..runners.lynx_small import CASE, composition, lynx_yaml, moving_square, sizes

BEAMS = ["--device", "cpu"]


@pytest.fixture(autouse=True)
def in_case(monkeypatch: pytest.MonkeyPatch) -> None:
    """Published paths are relative to the working folder."""
    torch.set_num_threads(1)
    monkeypatch.chdir(CASE)


def published(folder: Path, *more: str, **keys: object) -> list[str]:
    """The command line for a published file; options last."""
    asked = ["--config", str(lynx_yaml(folder, **keys)), "--output", str(folder / "out.jsonl"), "--device", "cpu"]
    return ["generate", *asked, *more, "--options", *sizes()]


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    assert main(arguments) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("kind", ["image", "video"])
def test_published_file_gives_the_published_result(tmp_path: Path, kind: str) -> None:
    keys = {"test_files": [f"./{kind}s.jsonl"], "vision_prompt_dict": kind}
    assert main(published(tmp_path, **keys)) == 0
    assert (tmp_path / "out.jsonl").read_text() == (CASE / f"result_{kind}s_beam.jsonl").read_text()
    assert [f.name for f in tmp_path.iterdir()] != [] and not list(tmp_path.glob("*.part-*"))


def test_several_files_one_after_the_other(tmp_path: Path) -> None:
    assert main(published(tmp_path, test_files=["./images.jsonl", "./images.jsonl"], batch_size_test=3)) == 0
    assert (tmp_path / "out.jsonl").read_text() == 2 * (CASE / "result_images_beam.jsonl").read_text()


def test_composition_with_the_same_options_answers_the_same(tmp_path: Path) -> None:
    flags = ["--num-beams", "5", "--length-penalty", "-2", "--max-new-tokens", "20", *BEAMS]
    asked = ["generate", "--cfg-path", str(composition(tmp_path)), "--data", "videos.jsonl"]
    assert main([*asked, "--output", str(tmp_path / "a.jsonl"), *flags]) == 0
    assert (tmp_path / "a.jsonl").read_text() == (CASE / "result_videos_beam.jsonl").read_text()
    raw = ["--raw-prompt", "--prompt", "USER: {question}\nBot: "]
    assert main([*asked, "--output", str(tmp_path / "b.jsonl"), *flags, *raw, "--copy", "question"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    questions = [row.pop("question") for row in rows]
    assert questions == ["Does the person put down a mug?", "What is the dog doing?"]
    assert rows == [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]


def test_keys_without_effect_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from vlm.systems.lynx.published_config import LynxFile

    with caplog.at_level("INFO", "vlm"):
        asked = LynxFile().questions(lynx_yaml(tmp_path), sizes())
    said = [r.getMessage() for r in caplog.records if "has no effect" in r.getMessage()]
    assert [text.split(": ")[1].split()[0] for text in said] == [
        "image_rdir", "output_prompt_dict", "use_flash_attn", "use_left_pad",
    ]  # fmt: skip
    assert asked.generation.no_repeat_ngram_size == 2 and asked.batch_size == 2


def test_records_may_hold_frames_base64_files_and_nothing(tmp_path: Path) -> None:
    frames = json.loads((CASE / "images" / "video_0.json").read_text())
    (tmp_path / "one.json").write_text(json.dumps(frames[0]))
    clip = moving_square(tmp_path / "clip.mp4", (255, 0, 0))
    media = ["images/video_0.json", frames, str(tmp_path / "one.json"), frames[0], str(clip), None]
    rows = [{"question": "What is it?", "image": medium} for medium in media]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(published(tmp_path, "--data", str(tmp_path / "rows.jsonl"))) == 0
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["index"] for row in found] == [0, 1, 2, 3, 4, 5]
    texts = [row["text_output"] for row in found]
    assert texts[0] == texts[1] and texts[2] == texts[3]


@pytest.mark.skipif(not video_read.installed("decord"), reason="needs decord")
def test_both_decoders_give_the_same_answer(tmp_path: Path) -> None:
    rows = [{"question": "What moves?", "video": str(moving_square(tmp_path / "a.mp4", (0, 255, 0)))}]
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows[0]) + "\n")
    for backend in ("decord", "opencv"):
        keys = {"vision_prompt_dict": "video", "test_files": [str(tmp_path / "rows.jsonl")]}
        assert main([*published(tmp_path, "--overwrite", **keys), f"model.video.backend={backend}"]) == 0
        (tmp_path / "out.jsonl").rename(tmp_path / backend)
    assert (tmp_path / "decord").read_text() == (tmp_path / "opencv").read_text()


def test_clip_with_fewer_frames_than_asked_may_be_refused(tmp_path: Path, capsys) -> None:
    row = {"question": "What moves?", "video": str(moving_square(tmp_path / "a.mp4", (0, 255, 0), frames=2))}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    asked = published(tmp_path, vision_prompt_dict="video", test_files=[str(tmp_path / "rows.jsonl")])
    said = refused(capsys, [*asked, "model.video.on_short_video=error"])
    assert re.search(r"rows.jsonl:1: video .*a.mp4: 2 frames, but video.num_frames asks for 3", said), said


def test_sampling_follows_the_seed(tmp_path: Path) -> None:
    said = {}
    for name, seed, batch in (("a", 1, 2), ("b", 1, 1), ("c", 2, 2)):
        more = ("--seed", str(seed), "--batch-size", str(batch), "--overwrite")
        assert main(published(tmp_path, *more, use_nucleus_sampling=True, num_beams=1)) == 0
        said[name] = (tmp_path / "out.jsonl").read_text()
    assert said["a"] == said["b"] != said["c"]


@pytest.mark.slow
def test_two_processes_write_the_same_file(tmp_path: Path) -> None:
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, "-m", "vlm.cli", *published(tmp_path, test_files=["images.jsonl"] * 2, batch_size_test=1)]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": root}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "out.jsonl").read_text() == 2 * (CASE / "result_images_beam.jsonl").read_text()


def test_interrupted_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlm.inference.engine import Engine

    calls: list[int] = []
    generate = Engine.generate

    def counting(self, asked, *rest):
        calls.append(len(asked))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(self, asked, *rest)

    monkeypatch.setattr(Engine, "generate", counting)
    asked = published(tmp_path, test_files=["images.jsonl"] * 2, batch_size_test=1)
    assert main(asked) == 130
    part = tmp_path / "out.jsonl.part-0"
    assert not (tmp_path / "out.jsonl").exists()
    part.write_text(part.read_text() + '["abc", "cut o')
    assert main(asked) == 0
    assert calls == [1, 1, 1, 1, 1]
    assert (tmp_path / "out.jsonl").read_text() == 2 * (CASE / "result_images_beam.jsonl").read_text()


def test_a_bad_record_is_marked_and_can_be_mended(tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    from vlm.inference.engine import Engine

    asked: list[int] = []
    generate = Engine.generate

    def counting(self, conversations, *rest):
        asked.append(len(conversations))
        return generate(self, conversations, *rest)

    monkeypatch.setattr(Engine, "generate", counting)
    image = (CASE / json.loads((CASE / "images.jsonl").read_text().splitlines()[0])["image"]).read_bytes()
    for k in range(6):
        (tmp_path / f"{k}.jpg").write_bytes(image[: 60 if k == 3 else None])
    rows = [{"index": k, "image": f"{k}.jpg", "question": f"What is {k}?"} for k in range(6)]
    (tmp_path / "rows.jsonl").write_text("not JSON\n" + "".join(json.dumps(row) + "\n" for row in rows))
    more = ["--data", str(tmp_path / "rows.jsonl"), "--media-root", str(tmp_path), "--batch-size", "2"]

    def answers() -> list[dict]:
        assert main(published(tmp_path, *more)) == 0
        return [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]

    first = answers()
    told = capsys.readouterr().out
    assert "out.jsonl: 5 answers" in told and "2 of 7 records could not be used" in told
    assert [k for k, row in enumerate(first) if "error" in row] == [0, 4]
    assert first[4]["text_output"] is None and "rows.jsonl:5: image" in first[4]["error"]
    assert sum(asked) == 5 and (tmp_path / "out.jsonl.part-0").exists()
    # the line that was no JSON is removed, the image is copied again: only that record is asked
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "3.jpg").write_bytes(image)
    asked.clear()
    second = answers()
    assert asked == [1] and [row["index"] for row in second] == list(range(6))
    assert all("error" not in row for row in second) and second[:3] == first[1:4] and second[4:] == first[5:]
    assert not list(tmp_path.glob("*.part-*"))
    assert "out.jsonl exists" in refused(capsys, published(tmp_path, *more))


def test_too_many_bad_records_are_an_error(tmp_path: Path, capsys) -> None:
    rows = [{"image": "none.jpg" if k < 4 else None, "question": "\ud800" if k == 4 else "What?"} for k in range(6)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = published(tmp_path, "--data", str(tmp_path / "rows.jsonl"), "--max-bad-share", "0.2")
    assert "5 of 6 records cannot be used, allowed are 20%" in refused(capsys, asked)


def test_parts_of_another_run_and_a_finished_file_are_not_touched(tmp_path: Path, capsys) -> None:
    part = tmp_path / "out.jsonl.part-0"
    part.write_text('{"fingerprint": "other"}\n["0", "x"]\n')
    assert "was written with another prompt, another model or other options" in refused(capsys, published(tmp_path))
    part.write_text('{"what": 1}\n')
    assert "not a partial answer file" in refused(capsys, published(tmp_path))
    part.unlink()
    (tmp_path / "out.jsonl").write_text("mine")
    assert "out.jsonl exists\n  fix: name another file, or add --overwrite" in refused(capsys, published(tmp_path))
    assert (tmp_path / "out.jsonl").read_text() == "mine"


@pytest.mark.parametrize(
    ("keys", "wanted"),
    [
        ({"num_beam": 3}, r"unknown key 'num_beam'; did you mean 'num_beams'"),
        ({"image_res": None}, r"image_res \(.*LYNX.yaml\): missing; expected an integer"),
        ({"num_beams": "five"}, r"num_beams \(.*LYNX.yaml:\d+\): found 'five' \(a string\), expected an integer"),
        ({"checkpoint": ""}, "checkpoint is missing: bridge and adapters would have random weights"),
        ({"checkpoint": "./data/none.pt"}, "none.pt"),
        ({"adapter_freq": -1}, "adapter_freq is -1"),
        ({"bridge": "mlp"}, "bridge .*expected one of 'resampler'"),
        ({"prompt": "User: {frage}"}, r"images.jsonl:1: no field 'frage' \(it has answer, class, dataset"),
        ({"test_files": "nothing.jsonl"}, "nothing.jsonl"),
        ({"image_res": 55}, "55"),
        ({"data": {"num_frames": 4}, "test_files": "videos.jsonl", "vision_prompt_dict": "video"}, "num_frames"),
        ({"apply_lemmatizer": True}, "apply_lemmatizer needs spaCy"),
    ],
)
def test_faults_of_the_published_file(tmp_path: Path, capsys, keys: dict, wanted: str) -> None:
    said = refused(capsys, published(tmp_path, **keys))
    assert re.search(wanted, said), said


@pytest.mark.parametrize(
    ("row", "wanted"),
    [
        ({"image": "images/none.png"}, "rows.jsonl:1: images/none.png: no such file in"),
        ({"image": "QUJD" * 20}, "rows.jsonl:1: image .*not an image format"),
        ({"image": 7}, "rows.jsonl:1: a int is neither an image nor a video"),
        ({"image": []}, "rows.jsonl:1: a video without frames"),
        ({"image": "broken.mp4"}, "rows.jsonl:1: video .*broken.mp4: no video that decord or opencv can read"),
        ({"image": "empty.mp4"}, "rows.jsonl:1: video .*empty.mp4: empty"),
    ],
)
def test_faults_of_a_record(tmp_path: Path, capsys, row: dict, wanted: str) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"no video at all" * 50)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "What?"} | row) + "\n")
    if isinstance(row["image"], str) and row["image"].endswith(".mp4"):
        more = ["--media-root", str(tmp_path)]
    else:
        more = []
    said = refused(capsys, published(tmp_path, "--data", str(tmp_path / "rows.jsonl"), *more))
    assert re.search(wanted, said), said


def test_faults_of_the_command_line(tmp_path: Path, capsys) -> None:
    out = ["--output", str(tmp_path / "o.jsonl")]
    ours = composition(tmp_path)
    assert "no model named" in refused(capsys, ["generate", *out])
    assert "no records named" in refused(capsys, ["generate", str(ours), *out])
    assert "--checkpoint goes with --config" in refused(capsys, ["generate", str(ours), "--checkpoint", "x", *out])
    both = ["generate", str(ours), "--config", str(lynx_yaml(tmp_path)), *out]
    assert "give one" in refused(capsys, both)
    assert "is not a published file with questions of its own" in refused(
        capsys, ["generate", "--config", str(ours), *out]
    )
    missing = ["generate", str(ours), "--data", "images.jsonl", "--copy", "colour", *out, "--device", "cpu"]
    assert "no field 'colour' to copy" in refused(capsys, missing)


def test_file_with_the_published_values_is_shipped(tmp_path: Path) -> None:
    from vlm.config.schema import Report, read
    from vlm.systems.lynx.published_config import LynxYaml

    shipped = yaml.safe_load((Path(__file__).parents[2] / "eval_configs" / "published" / "LYNX.yaml").read_text())
    report = Report()
    keys = read(LynxYaml, shipped, (), report)
    assert not report.problems and keys.length_penalty == -2.0 and keys.top_k == 3 and keys.data.num_frames == 5


def test_lemmas_of_nouns_and_verbs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pipe(texts):
        for text in texts:
            yield [SimpleNamespace(text=w, lemma_=w[:1], pos_="NOUN" if "n" in w else "DET") for w in text.split()]

    fake = SimpleNamespace(load=lambda name: SimpleNamespace(pipe=pipe))
    monkeypatch.setitem(sys.modules, "spacy", fake)
    assert main(published(tmp_path, apply_lemmatizer=True)) == 0
    first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
    assert first["text_output"] == "n n a wB a a"
