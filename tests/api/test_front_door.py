"""``import vlm``: what a program sees, and that every way to pass an image gives the same answer."""

from __future__ import annotations

import base64
import os
import pydoc
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

import vlm
from vlm.common.errors import DataError, PromptError, UserError
from vlm.common.registry import FOLDERS
from vlm.inference.streaming import join

from ..inference.small import CASE, write_config

IMAGE = CASE / "image.png"
ROOT = Path(vlm.__file__).parents[1]
ASK = "What is in the image?"
GREEDY = {"do_sample": False, "max_new_tokens": 12, "repetition_penalty": 1.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> vlm.Engine:
    torch.set_num_threads(1)
    return vlm.load(write_config(tmp_path_factory.mktemp("small")))


@pytest.fixture(scope="module")
def answer(model: vlm.Engine) -> str:
    return model.chat(ASK, image=str(IMAGE), **GREEDY)


def pixels() -> np.ndarray:
    return np.asarray(PILImage.open(IMAGE).convert("RGB"))


def data_url() -> str:
    return "data:image/png;base64," + base64.b64encode(IMAGE.read_bytes()).decode()


FORMS = {
    "path": lambda: IMAGE,
    "PIL": lambda: PILImage.open(IMAGE),
    "bytes": IMAGE.read_bytes,
    "data URL": data_url,
    "array": pixels,
    "array of floats": lambda: pixels() / 255,
    "tensor": lambda: torch.from_numpy(pixels().copy()).permute(2, 0, 1),
    "tensor of floats": lambda: torch.from_numpy(pixels().copy()).permute(2, 0, 1) / 255,
    "tensor, channels last": lambda: torch.from_numpy(pixels().copy()),
    "part": lambda: vlm.Image(IMAGE),
    "part with an array": lambda: vlm.Image(pixels()),
    "list": lambda: [str(IMAGE)],
    "tuple": lambda: (IMAGE,),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_an_image_equals_its_path(model: vlm.Engine, answer: str, form: str) -> None:
    assert model.chat(ASK, image=FORMS[form](), **GREEDY) == answer
    assert model.conversation().chat(ASK, image=FORMS[form](), **GREEDY) == answer


def test_the_image_and_their_number_matter(model: vlm.Engine) -> None:
    prompts = [[], IMAGE, [IMAGE, IMAGE], PILImage.new("RGB", (42, 42), "red")]
    embedded = [model.prompt([vlm_messages(model, image)]).embeds for image in prompts]
    assert [len(e[0]) for e in embedded][:3] == sorted({len(e[0]) for e in embedded})
    assert not torch.equal(embedded[1], embedded[3])


def vlm_messages(model: vlm.Engine, image: object) -> list[vlm.Message]:
    from vlm.processors.messages import to_messages

    return to_messages(ASK, image)  # type: ignore[return-value]


CONVERSATIONS = {
    "message": lambda: [vlm.Message("user", [vlm.Image(IMAGE), ASK])],
    "one message": lambda: vlm.Message("user", [vlm.Image(str(IMAGE)), vlm.Text(ASK)]),
    "OpenAI": lambda: [
        {
            "role": "user",
            "content": [{"type": "image_url", "image_url": {"url": data_url()}}, {"type": "text", "text": ASK}],
        }
    ],
    "OpenAI with a path": lambda: {
        "role": "user",
        "content": [{"type": "image_url", "image_url": str(IMAGE)}, {"type": "text", "text": ASK}],
    },
    "image part": lambda: [{"role": "user", "content": [{"type": "image", "image": pixels()}, ASK]}],
}


@pytest.mark.parametrize("form", CONVERSATIONS)
def test_every_form_of_a_conversation(model: vlm.Engine, answer: str, form: str) -> None:
    conversation = CONVERSATIONS[form]()
    assert model.chat(conversation, **GREEDY) == answer
    assert join(model.stream(conversation, **GREEDY)) == answer
    if isinstance(conversation, list):
        assert model.generate([conversation, conversation], **GREEDY) == [answer, answer]


def test_chat_equals_generate_equals_stream(model: vlm.Engine, answer: str) -> None:
    assert join(model.stream(ASK, image=IMAGE, **GREEDY)) == answer
    options = model.options(**GREEDY)
    assert model.generate(["Hello?", ASK], options) == [model.chat("Hello?", **GREEDY), model.chat(ASK, **GREEDY)]
    assert isinstance(options, vlm.Generation)
    assert model.chat([{"role": "user", "content": "Hello?"}], generation=options) == model.chat("Hello?", **GREEDY)


def test_a_conversation_remembers(model: vlm.Engine, answer: str) -> None:
    talk = model.conversation()
    assert talk.chat(ASK, image=IMAGE, **GREEDY) == answer
    second = join(talk.stream("And what else?", **GREEDY))
    messages = [
        vlm.Message("user", [vlm.Image(IMAGE), ASK]),
        {"role": "assistant", "content": answer},
        {"role": "user", "content": "And what else?"},
    ]
    assert model.chat(messages, **GREEDY) == second
    assert model.chat("And what else?", **GREEDY) != second
    assert repr(talk).startswith("<vlm.ChatSession: 2 answers, <vlm.Engine ")
    with pytest.raises(PromptError, match="positions"):
        talk.chat("word " * 3000)
    assert len(talk.messages) == 4  # as before


def test_the_system_text_of_a_conversation(model: vlm.Engine) -> None:
    talk = model.conversation(system="Answer in Dutch.")
    talk.ask("Hello?")
    assert model.text(talk.prompt()).startswith("Answer in Dutch.")


@pytest.mark.parametrize(
    "question, message",
    [
        (3, "found 3, expected a conversation"),
        ("  ", "nothing was asked"),
        ([], "the conversation is empty"),
        (["What?"], "message 0: found 'What.', expected a message"),
        ([{"text": "What?"}], "message 0: its keys are text, expected role and content"),
        ([{"role": "human", "content": "What?"}], "role is 'human', expected system or user or assistant"),
        ([{"role": "user", "content": None}], "content is None, expected a string or a list"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "expected a part of type text, image_url or video_url"),
        ([{"role": "assistant", "content": "Hi"}], "the last message is the assistant's"),
    ],
)
def test_anything_else_is_an_error(model: vlm.Engine, question: object, message: str) -> None:
    with pytest.raises(PromptError, match=message):
        model.chat(question)  # type: ignore[arg-type]
    with pytest.raises(PromptError, match=message):
        model.stream(question)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "image, message",
    [
        (object(), "found a object, expected an image"),
        ([None], "found None, expected an image"),
        ("https://example.org/cat.jpg", r"addresses are not fetched unless allowed\n  fix: vlm.load\(..., allow_urls"),
        ("nothing.jpg", "nothing.jpg: no such file"),
        (b"not an image", "not an image format"),
        (np.full((4, 4, 3), 7.0), "floats from 7 to 7, expected 0 to 1"),
        (np.zeros((2, 4, 4, 3), np.uint8), "expected uint8"),
    ],
)
def test_unusable_images(model: vlm.Engine, image: object, message: str) -> None:
    for ask in (model.chat, model.conversation().chat):
        with pytest.raises(DataError, match=message):
            ask(ASK, image=image)


def test_other_mistakes(model: vlm.Engine) -> None:
    with pytest.raises(PromptError, match="generate takes a list of conversations"):
        model.generate(ASK)
    with pytest.raises(PromptError, match="generate takes a list of conversations"):
        model.generate([vlm.Message("user", ASK)])
    with pytest.raises(UserError, match="unknown generation option 'max_tokens'"):
        model.chat(ASK, max_tokens=3)
    with pytest.raises(PromptError, match="found a str in place of generation options"):
        model.stream(ASK, "cat.jpg")  # type: ignore[arg-type]
    with pytest.raises(PromptError, match="found a PngImageFile, expected text, vlm.Image"):
        vlm.Message("user", [PILImage.open(IMAGE), ASK])  # type: ignore[list-item]
    with pytest.raises(DataError, match="takes images only"):
        model.conversation().chat(ASK, video=[IMAGE])


def test_addresses_are_fetched_when_allowed(model: vlm.Engine, answer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vlm.processors.messages.local_path", lambda url: IMAGE)
    monkeypatch.setattr(model, "allow_urls", True)
    assert model.chat(ASK, image="https://example.org/cat.png", **GREEDY) == answer


def test_frames_and_files_of_videos() -> None:
    from vlm.processors.messages import to_videos

    frames = np.zeros((2, 8, 8, 3), np.uint8)
    for frame_list in (frames, list(frames), torch.from_numpy(frames).permute(0, 3, 1, 2), frames / 255.0):
        (video,) = to_videos(frame_list)
        assert [f.shape for f in video.source] == [(8, 8, 3)] * 2
    assert [v.source for v in to_videos("a.mp4")] == ["a.mp4"]
    assert [v.source for v in to_videos(["a.mp4", "frames"])] == ["a.mp4", "frames"]
    assert [v.source for v in to_videos(["1.png", "2.png"])] == [["1.png", "2.png"]]
    with pytest.raises(DataError, match="expected a video"):
        to_videos(frames[0])


def test_repr_says_what_it_is(model: vlm.Engine) -> None:
    text = repr(model)
    assert text.startswith("<vlm.Engine ") and "eva_vit -> qformer -> linear -> llm; " in text
    assert text.endswith("M parameters, cpu, float32>")


def test_names_and_help() -> None:
    listed = dir(vlm)
    assert listed == sorted(
        {*vlm._NAMES, *(f"register_{k}" for k in FOLDERS), "load", "load_config", "train", "__version__"}
    )
    for name in listed:
        assert getattr(vlm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'register_nothing'"):
        _ = vlm.register_nothing  # type: ignore[attr-defined]
    page = pydoc.render_doc(vlm, renderer=pydoc.plaintext).splitlines()
    assert len(page) <= 50 and any("vlm.load(" in line for line in page)


def test_names_are_found_without_importing_submodules() -> None:
    code = "import sys, vlm; vlm.Message('user', 'Hi'); assert 'torch' not in sys.modules and 'common' not in dir(vlm)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_a_typed_script_passes_strict_mypy(tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "mypy.ini").write_text(
        "[mypy]\nstrict = true\nfollow_imports = silent\n"
        + "".join(f"[mypy-{name}.*]\nfollow_imports = skip\n" for name in ("torch", "transformers", "numpy", "PIL"))
    )
    script = tmp_path / "script.py"
    script.write_text(
        "import vlm\n"
        "model = vlm.load('output/mine', options=['model.llm.quantize=int8'])\n"
        "answer: str = model.chat('What?', image='cat.jpg', max_new_tokens=3)\n"
        "pieces: list[str] = [*model.stream([vlm.Message('user', 'What?')], vlm.Generation(num_beams=1))]\n"
        "loss: float = vlm.train('x.yaml', run={'init_lr': 1e-4}).loss\n"
        "vlm.laod('x')\n"
        "model.chat(image=3)\n"
    )
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", f"--cache-dir={tmp_path}", str(script)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "MYPYPATH": str(ROOT)}
    )
    errors = [line for line in done.stdout.splitlines() if ": error:" in line]
    assert len(errors) == 2 and "script.py:6" in errors[0] and "script.py:7" in errors[1], done.stdout
