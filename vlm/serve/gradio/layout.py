"""The widgets of the chat page, and their events."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from vlm.common.errors import DataError
from vlm.common.types import Image, Video
from vlm.inference.engine import Engine
from vlm.inference.generation import CHAT, Generation
from vlm.serve.gradio import theme as look
from vlm.serve.gradio.display import told
from vlm.serve.gradio.events import Events, template_option
from vlm.serve.gradio.examples import Example
from vlm.serve.gradio.uploads import KEPT_SECONDS, upload_folder

QUESTION = "What is in the image?"


@dataclass
class Widgets:
    """What the events read and change; ``settings`` by their name in ``Generation``, and ``keep``."""

    chat: gr.State
    image: gr.Image
    video: gr.Video
    settings: dict[str, Any]
    bubbles: gr.Chatbot
    question: gr.Textbox
    send: gr.Button
    stop: gr.Button
    again: gr.Button
    restart: gr.Button
    system: gr.Textbox
    turns: gr.Slider
    read: gr.Textbox


def build(
    engine: Engine,
    generation: Generation = CHAT,
    examples: Sequence[Example] = (),
    pixels: bool = False,
    stream: bool = True,
) -> gr.Blocks:
    """The page, not started.

    Args:
        engine: answers.
        generation: initial settings.
        examples: images and questions to click.
        pixels: enlarge small images without smoothing.
        stream: show answers as they grow.
    """
    classes = ["pixels"] if pixels else []
    upload_folder()  # before the first widget, which remembers where its files go
    blocks = gr.Blocks(title="vlm chat", analytics_enabled=False, fill_height=True, delete_cache=(600, KEPT_SECONDS))
    with blocks as page:
        gr.HTML(look.header(engine), padding=False)
        with gr.Row(equal_height=False, elem_id="main"):
            with gr.Column(scale=2, min_width=300):
                image = _image(classes)
                video = _uploaded(gr.Video(visible=engine.processor.video is not None, **look.widget("video")))
                gr.HTML(look.static("hint.html"), padding=False)
                settings = _settings(generation)
                prompt = accordion(engine)
            with gr.Column(scale=5, min_width=400):
                hint = look.placeholder(examples[0][1] if examples else QUESTION, bool(examples))
                bubbles = gr.Chatbot(elem_classes=classes, placeholder=hint, **look.widget("chat"))
                with gr.Row(elem_id="ask"):
                    question, send = gr.Textbox(**look.widget("question")), gr.Button(**look.widget("send"))
                with gr.Row(elem_id="actions"):
                    stop, again, restart = (gr.Button(**look.widget(n)) for n in ("stop", "again", "restart"))
                _shortcuts(engine, question)
        if examples:
            _gallery(examples, image, question, classes)
        events = Events(engine, generation, [n for n in settings if n != "keep"], stream)
        chat = gr.State(None, time_to_live=KEPT_SECONDS, delete_callback=events.forget)
        controls = (question, send, stop, again, restart)
        widgets = Widgets(chat, image, video, settings, bubbles, *controls, *prompt)
        _wire(widgets, events)
    return page


def _image(classes: list[str]) -> gr.Image:
    return _uploaded(gr.Image(elem_classes=classes, **look.widget("image")))


def _uploaded(medium: Any) -> Any:
    """The widget giving the path of the file as it was uploaded, which the processor decodes."""

    def admitted(file: Any) -> str | None:
        try:
            return None if file is None else upload_folder().admit(file.path)
        except DataError as error:
            raise gr.Error(told(error), print_exception=False) from None

    vars(medium)["preprocess"] = admitted
    return medium


def _settings(start: Generation) -> dict[str, Any]:
    values = {**vars(start), "keep": False}
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        specs = look.widget("settings").items()
        return {name: vars(gr)[spec.pop("kind")](value=values[name], **spec) for name, spec in specs}


def accordion(engine: Engine) -> tuple[gr.Textbox, gr.Slider, gr.Textbox]:
    """The closed accordion "Prompt": system text, turns kept, and what the model reads.

    It starts with the template's own text and all turns.
    """
    most = template_option(engine, "keep_turns", -1)  # a template that keeps few turns never reads more
    low, high = (-1, 10) if most < 0 else (0, max(most, 1))
    with gr.Accordion("Prompt", open=False, elem_id="prompt"):
        system = gr.Textbox(template_option(engine, "system", ""), **look.widget("system"))
        turns = gr.Slider(low, high, most, **look.widget("turns"))
        return system, turns, gr.Textbox(**look.widget("read"))


def _gallery(examples: Sequence[Example], image: gr.Image, question: gr.Textbox, classes: list[str]) -> None:
    """Images with a question each; a click fills both in."""
    gr.HTML('<div id="examples-title">Examples: click one, then Send</div>', padding=False)
    shown = gr.Gallery(list(examples), columns=len(examples), elem_classes=classes, **look.widget("examples"))

    def pick(event: gr.SelectData) -> list[Any]:
        known = isinstance(event.index, int) and 0 <= event.index < len(examples)
        return list(examples[event.index]) if known else [gr.skip(), gr.skip()]

    shown.select(pick, None, [image, question], show_progress="hidden", api_visibility="private")


def _shortcuts(engine: Engine, question: gr.Textbox) -> None:
    """Buttons that start a question with a task text, for templates that have them."""
    if texts := engine.processor.template.task_texts:
        with gr.Row(elem_id="tasks"):
            for text in texts:
                button = gr.Button(text.strip(), size="sm", min_width=60)
                click = functools.partial(str, text)
                button.click(click, None, [question], show_progress="hidden", api_visibility="private")


def _wire(w: Widgets, events: Events) -> None:
    """Connect events. Over all visitors one answer is written at a time; everything else runs in parallel."""
    buttons = [w.send, w.stop, w.again]
    at_once: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
    decoding = {**at_once, "concurrency_limit": 2, "concurrency_id": "decoding"}  # of images near the limit of pixels
    in_turn = {**at_once, "concurrency_limit": 1, "concurrency_id": "model"}
    writing = {
        "fn": events.write,
        "inputs": [w.chat, *(w.settings[n] for n in events.names), w.system, w.turns],
        "outputs": [w.bubbles, *buttons],
        **in_turn,
        "show_progress": "minimal",  # the place in the queue
        "show_progress_on": w.bubbles,
    }
    read = {"fn": events.read, "inputs": [w.chat], "outputs": [w.read], **at_once}
    asking = [w.question, w.image, w.settings["keep"], w.chat, w.video]
    asked = [w.chat, w.bubbles, w.question, *buttons]
    gr.on([w.send.click, w.question.submit], events.ask, asking, asked, **decoding).success(**writing).then(**read)
    redraw = [w.chat, w.settings["do_sample"], w.settings["seed"]]
    w.again.click(events.again, redraw, [w.bubbles, *buttons], **at_once).success(**writing).then(**read)
    w.stop.click(events.stop, [w.chat], [w.bubbles, *buttons], **at_once)
    emptied = [w.bubbles, w.image, w.video, w.question, *buttons]
    gr.on([w.restart.click, w.bubbles.clear], events.restart, [w.chat], emptied, **at_once)
    w.image.upload(functools.partial(events.check, Image), [w.image], [w.image], **decoding)
    w.video.upload(functools.partial(events.check, Video), [w.video], [w.video], **decoding)
