"""BLIP-2 and InstructBLIP beyond the comparison: what the Q-Former reads, forms of a folder, training, refusals."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file as load_safetensors
from safetensors.torch import save_file

from tests.golden.installed import blip2
from vlm.checkpoint.load import load_file
from vlm.cli.main import main
from vlm.common.errors import UserError
from vlm.common.types import Batch, Example, Image, Message, Sample
from vlm.inference.engine import Engine
from vlm.models.build import build_model
from vlm.processors.collate import collate, collate_rows
from vlm.processors.questions import with_questions
from vlm.processors.templates.base import Segment
from vlm.systems.blip2.checkpoint import LavisBlip2

WEIGHTS = "model.safetensors"
BUILDERS = {"blip2": blip2.build, "instructblip": blip2.build_instruct}
BOAT, HOUSE = (np.full((50, 60, 3), level, dtype=np.uint8) for level in (40, 200))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folders = {name: tmp_path_factory.mktemp(name) for name in BUILDERS}
    for name, folder in folders.items():
        BUILDERS[name](folder)
    return folders


@pytest.fixture(scope="module")
def engine(made: dict[str, Path]) -> Engine:
    """InstructBLIP."""
    return Engine.load(made["instructblip"], "cpu")


@pytest.fixture
def copied(made: dict[str, Path], tmp_path: Path) -> Callable[[str], Path]:
    return lambda name: Path(shutil.copytree(made[name], tmp_path / name))


def ask(*parts: object) -> Message:
    return Message("user", list(parts))


def words(engine: Engine, example: Example) -> list[str]:
    """The questions of an example, spelled as the Q-Former's tokenizer reads them."""
    tokenizer = engine.processor.question._backend._tok
    return [tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "") for ids in example.texts]


def train(engine: Engine, *messages: Message) -> Example:
    return engine.processor.encode_train(Sample(messages), random.Random(0))


def test_the_question_is_that_of_the_turn(engine: Engine) -> None:
    first = [ask(Image(BOAT), "is it a boat?"), Message("assistant", "yes")]
    later = ask("and <ImageHere> a house?", Image(HOUSE))
    chat = engine.processor.encode_chat([Message("system", "be brief"), *first, later])
    assert words(engine, chat) == ["isitaboat?", "andahouse?"]
    assert words(engine, train(engine, *first, later, Message("assistant", "no"))) == ["isitaboat?", "andahouse?"]
    assert words(engine, train(engine, *first, later)) == ["isitaboat?"]
    assert words(engine, engine.processor.encode_prompt("<ImageHere> see?", [BOAT])) == ["see?"]
    assert engine.processor.encode_chat([ask("no image")]).texts == []


def test_two_messages_of_a_turn_are_one_question(engine: Engine) -> None:
    image = Image(BOAT)
    assert words(engine, engine.processor.encode_chat([ask(image), ask("what is it?")])) == ["whatisit?"]
    both = engine.processor.encode_chat([ask(image, "a?"), Message("assistant", "b"), ask(image, "c?")])
    assert words(engine, both) == ["a?", "c?"]


def test_a_caption_is_read_with_the_prompt_that_was_drawn() -> None:
    image = Image(BOAT)
    drawn = [Segment(medium=image), Segment("describe it."), Segment("a boat", supervised=True)]
    assert with_questions(drawn, [(image, "")])[0].question == "describe it."
    with pytest.raises(UserError, match="replaces an image by another object"):
        with_questions(drawn, [(Image(HOUSE), "")])


def samples(engine: Engine) -> list[Example]:
    texts = [("what is in the image?", "a boat"), ("is it a house or is it a boat, and how many?", "two"), ("a", "b c")]
    examples = [train(engine, ask(Image(BOAT), q), Message("assistant", a)) for q, a in texts]
    return [*examples, train(engine, ask("no image"), Message("assistant", "none"))]


def test_batched_packed_and_single_losses_agree(engine: Engine) -> None:
    rows = samples(engine)

    def loss(batch: Batch) -> float:
        return engine.model(batch).loss_sum.item()

    single = sum(loss(collate([row], 0)) for row in rows)
    assert loss(collate(rows, 0)) == pytest.approx(single, abs=1e-3)
    assert loss(collate_rows([rows[:2], rows[2:]], 0)) == pytest.approx(single, abs=1e-3)


def test_features_are_kept_for_an_image_and_its_question(engine: Engine) -> None:
    engine.features.clear()
    questions = [[ask(Image(BOAT), text)] for text in ("is it a boat?", "a house, or what is it?", "is it a boat?")]
    alone = [engine.fuse(engine.examples([q])).inputs_embeds[0, : blip2.QUERIES] for q in questions]
    assert len(engine.features) == 2
    assert torch.equal(alone[0], alone[2]) and (alone[0] - alone[1]).abs().max() > 1e-3
    batch = engine.fuse(engine.examples(questions)).inputs_embeds[:, : blip2.QUERIES]
    assert torch.equal(batch, torch.stack(alone)) and len(engine.features) == 2  # padding is not part of a question
    engine.features.clear()
    batch = engine.fuse(engine.examples(questions)).inputs_embeds[:, : blip2.QUERIES]
    torch.testing.assert_close(batch, torch.stack(alone), rtol=0, atol=1e-5)


def test_a_conversation_of_two_images(engine: Engine) -> None:
    engine.features.clear()
    talk = engine.conversation()
    for number, (image, question) in enumerate([(BOAT, "is it a boat?"), (HOUSE, "and a house?")], start=1):
        talk.chat(question, image=image, max_new_tokens=2)
        assert len(engine.features) == number
    talk.chat("and a cat?", max_new_tokens=2)  # about the images that were shown
    assert len(engine.features) == 2


def test_older_files_in_shards_and_of_two_types(copied: Callable[[str], Path], engine: Engine) -> None:
    """Half precision but for the Q-Former, a buffer of earlier versions, no image token: as it was published first."""
    folder = copied("instructblip")
    tensors = load_safetensors(folder / WEIGHTS)
    (folder / WEIGHTS).unlink()
    halved = {name: t if name.startswith(("qformer", "query")) else t.half() for name, t in tensors.items()}
    halved["qformer.embeddings.position_ids"] = torch.arange(64)[None]
    where = {name: f"model-{number % 3}.safetensors" for number, name in enumerate(sorted(halved))}
    for file in set(where.values()):
        save_file({name: t for name, t in halved.items() if where[name] == file}, folder / file, {"format": "pt"})
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    change(folder / "config.json", image_token_index=None)
    other = Engine.load(folder, "cpu")
    assert other.config.model.llm.get("dtype") == other.config.model.vision.get("precision") == "fp16"
    conversation = [ask(Image(BOAT), "is it a boat?")]
    ours, expected = (one.prompt([conversation]).embeds for one in (other, engine))
    torch.testing.assert_close(ours, expected, rtol=0, atol=2e-2)


@pytest.mark.parametrize(("name", "projection"), [("blip2", "opt_proj"), ("instructblip", "llm_proj")])
def test_files_of_lavis(name: str, projection: str, made: dict[str, Path], tmp_path: Path) -> None:
    source = Engine.load(made[name], "cpu")
    held = {"Qformer.bert.embeddings.position_ids": torch.arange(64)[None], "Qformer.cls.bias": torch.ones(3)}
    for key, tensor in source.model.state_dict().items():
        if key.startswith(("bridge", "vision.ln_vision")):
            held[in_lavis(key, projection)] = tensor.half()
    if name == "blip2":  # the text layers of the Q-Former's first stage
        held["Qformer.bert.encoder.layer.0.output.dense.weight"] = torch.ones(2, 2)
        held["Qformer.bert.embeddings.word_embeddings.weight"] = torch.ones(2, 2)
    torch.save({"model": held}, tmp_path / "pretrained.pth")
    model = build_model(source.config.model)
    filled = load_file(model, LavisBlip2(), tmp_path / "pretrained.pth")
    assert filled == {key for key in model.state_dict() if key.startswith(("bridge", "vision.ln_vision"))}
    for key in filled:
        assert torch.equal(model.state_dict()[key], source.model.state_dict()[key].half().float()), key


def in_lavis(key: str, projection: str) -> str:
    """The published name of one of our tensors."""
    key = key.removeprefix("vision.").replace("bridge.1.proj", projection).removeprefix("bridge.0.")
    key = key.replace("attention.attention.", "attention.self.").replace("qformer.layernorm", "embeddings.LayerNorm")
    for start, end in (("qformer.", ""), ("text.", "embeddings."), ("embeddings.LayerNorm", "embeddings.LayerNorm")):
        if key.startswith(start):
            return f"Qformer.bert.{end}{key.removeprefix(start)}"
    return key


def change(file: Path, **values: object) -> None:
    content = json.loads(file.read_text())
    content.update(values)
    file.write_text(json.dumps(content))


def change_section(folder: Path, section: str, **values: object) -> None:
    file = folder / "config.json"
    content = json.loads(file.read_text())
    change(file, **{section: content[section] | values})


REFUSED: dict[str, tuple[Callable[[Path], None], str]] = {
    "T5": (
        lambda folder: change(folder / "config.json", text_config={"model_type": "t5", "d_model": 32}),
        "its language model, t5, is an encoder-decoder",
    ),
    "dropouts": (lambda folder: change_section(folder, "qformer_config", hidden_dropout_prob=0.2), "two dropouts"),
    "activation": (lambda folder: change_section(folder, "vision_config", hidden_act="quick_gelu"), "GELU and squares"),
    "tokenizer": (lambda folder: shutil.rmtree(folder / "qformer_tokenizer"), "no such file or folder"),
    "table": (
        lambda folder: change_section(folder, "qformer_config", vocab_size=20),
        "vocab_size is 20, but its tokenizer has",
    ),
}


def test_a_model_for_retrieval(copied: Callable[[str], Path]) -> None:
    folder = copied("blip2")
    change_section(folder, "qformer_config", use_qformer_text_input=True)
    with pytest.raises(UserError, match="a model for retrieval, without a language model"):
        Engine.load(folder, "cpu")


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_composed(name: str, copied: Callable[[str], Path]) -> None:
    spoil, message = REFUSED[name]
    folder = copied("instructblip")
    spoil(folder)
    with pytest.raises(UserError, match=message):
        Engine.load(folder, "cpu")


def test_it_is_imported_trained_and_asked(made: dict[str, Path], tmp_path: Path, capsys, monkeypatch) -> None:
    from PIL import Image as PILImage

    monkeypatch.chdir(tmp_path)
    PILImage.fromarray(BOAT).save("boat.png")
    rows = [{"image": "boat.png", "question": f"what is it {n}?", "answer": "a boat"} for n in range(4)]
    Path("rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert main(["import", str(made["instructblip"]), "--to", "mine.yaml"]) == 0
    with Path("mine.yaml").open("a") as file:
        file.write(
            "datasets: {mine: {format: table, batch_size: 2, build_info: {ann_path: rows.jsonl, image_path: .}}}\n"
        )
    settings = {"max_steps": 2, "num_workers": 0, "device": "cpu", "output_dir": "out", "init_lr": 1e-3, "log_freq": 1}
    run = [f"run.{key}={value}" for key, value in settings.items()]
    assert main(["train", "mine.yaml", "--options", *run]) == 0
    before, after = Engine.load(made["instructblip"], "cpu"), Engine.load("out", "cpu")
    moved = [n for n, p in after.model.named_parameters() if not torch.equal(p, before.model.get_parameter(n))]
    assert {name.split(".")[0] for name in moved} == {"bridge"} and "bridge.0.text.word_embeddings.weight" in moved
    capsys.readouterr()
    assert main(["chat", "out", "--image", "boat.png", "--ask", "what is it?", "--device", "cpu"]) == 0
    assert main(["verify", str(made["instructblip"]), "--against", "transformers", "-n", "2", "--device", "cpu"]) == 0
    assert "the same as transformers" in capsys.readouterr().out
