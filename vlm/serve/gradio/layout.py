"""The widgets of the chat page, and their events."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from vlm.common.types import Image, Video
from vlm.inference.engine import Engine
from vlm.inference.generation import CHAT, Generation
from vlm.serve.gradio import theme as look
from vlm.serve.gradio.events import Events, template_option
from vlm.serve.gradio.examples import Example, tasks

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
    with gr.Blocks(title="vlm chat", analytics_enabled=False, fill_height=True) as page:
        gr.HTML(look.header(engine), padding=False)
        with gr.Row(equal_height=False, elem_id="main"):
            with gr.Column(scale=2, min_width=300):
                image = _image(classes)
                seen = engine.processor.video is not None
                video = gr.Video(label="Video", sources=["upload"], height=200, visible=seen, elem_id="video")
                gr.HTML(look.static("hint.html"), padding=False)
                settings = _settings(generation)
                prompt = accordion(engine)
            with gr.Column(scale=5, min_width=400):
                bubbles = gr.Chatbot(
                    label="Conversation",
                    show_label=False,
                    height=500,
                    elem_id="chat",
                    elem_classes=classes,
                    layout="bubble",
                    buttons=["copy"],
                    placeholder=look.placeholder(examples[0][1] if examples else QUESTION, bool(examples)),
                )
                question, send = _question()
                with gr.Row():
                    stop = gr.Button("Stop", interactive=False, size="sm", elem_id="stop")
                    again = gr.Button("Regenerate", interactive=False, size="sm", elem_id="again")
                    restart = gr.Button("Restart", size="sm", elem_id="restart")
                _shortcuts(engine, question)
        if examples:
            _gallery(examples, image, question, classes)
        widgets = Widgets(
            gr.State(None), image, video, settings, bubbles, question, send, stop, again, restart, *prompt
        )
        _wire(widgets, Events(engine, generation, [n for n in settings if n != "keep"], stream))
    return page


def _image(classes: list[str]) -> gr.Image:
    image = gr.Image(
        type="filepath",
        label="Image",
        sources=["upload", "webcam", "clipboard"],
        height=290,
        elem_id="image",
        elem_classes=classes,
        buttons=["fullscreen"],
    )
    # as uploaded: the processor decodes it, and reports what is wrong with a file that is not an image
    vars(image)["preprocess"] = lambda file: file.path if file is not None else None
    return image


def _question() -> tuple[gr.Textbox, gr.Button]:
    with gr.Row():
        box = gr.Textbox(
            show_label=False,
            placeholder="Type a question about the image and press Enter",
            lines=1,
            max_lines=5,
            scale=8,
            autofocus=True,
            elem_id="question",
            container=False,
        )
        send = gr.Button("Send", variant="primary", scale=1, min_width=90, elem_id="send")
    return box, send


def _settings(start: Generation) -> dict[str, Any]:
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        return {
            "do_sample": gr.Checkbox(start.do_sample, label="Sample", info="off: always the most likely token"),
            "temperature": gr.Slider(0.1, 2.0, start.temperature, step=0.05, label="Temperature"),
            "top_p": gr.Slider(0.05, 1.0, start.top_p, step=0.05, label="Top-p"),
            "top_k": gr.Slider(0, 100, start.top_k, step=1, label="Top-k", info="0: all tokens"),
            "num_beams": gr.Slider(
                1, 10, start.num_beams, step=1, label="Beams", info="above 1: answers appear at once"
            ),
            "max_new_tokens": gr.Slider(1, 1000, start.max_new_tokens, step=1, label="Longest answer (tokens)"),
            "repetition_penalty": gr.Slider(1.0, 2.0, start.repetition_penalty, step=0.05, label="Repetition penalty"),
            "seed": gr.Number(start.seed, label="Seed", info="empty: a different answer each time", precision=0),
            "keep": gr.Checkbox(False, label="Several images", info="a new image is added to the conversation"),
        }


def accordion(engine: Engine) -> tuple[gr.Textbox, gr.Slider, gr.Textbox]:
    """The closed accordion "Prompt": system text, turns kept, and what the model reads.

    It starts with the template's own text and all turns.
    """
    most = template_option(engine, "keep_turns", -1)  # a template that keeps few turns never reads more
    low, high = (-1, 10) if most < 0 else (0, max(most, 1))
    text = template_option(engine, "system", "")
    with gr.Accordion("Prompt", open=False, elem_id="prompt"):
        return (
            gr.Textbox(text, label="System text", lines=2, max_lines=8, elem_id="system"),
            gr.Slider(low, high, most, step=1, label="Earlier turns in the prompt", info="-1: all that fit"),
            gr.Textbox(label="What the model reads", lines=3, max_lines=12, interactive=False, elem_id="read"),
        )


def _gallery(examples: Sequence[Example], image: gr.Image, question: gr.Textbox, classes: list[str]) -> None:
    """Images with a question each; a click fills both in."""
    gr.HTML('<div id="examples-title">Examples: click one, then Send</div>', padding=False)
    shown = gr.Gallery(
        list(examples),
        show_label=False,
        columns=len(examples),
        rows=1,
        height="auto",
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id="examples",
        elem_classes=classes,
    )

    def pick(event: gr.SelectData) -> list[str]:
        return list(examples[event.index])

    shown.select(pick, None, [image, question], show_progress="hidden", api_visibility="private")


def _shortcuts(engine: Engine, question: gr.Textbox) -> None:
    """Buttons that start a question with a task text, for templates that have them."""
    if texts := tasks(engine.config):
        with gr.Row(elem_id="tasks"):
            for text in texts:
                button = gr.Button(text.strip(), size="sm", min_width=60)
                click = functools.partial(str, text)
                button.click(click, None, [question], show_progress="hidden", api_visibility="private")


def _wire(w: Widgets, events: Events) -> None:
    """Connect events. Over all visitors one answer is written at a time; everything else runs in parallel."""
    buttons = [w.send, w.stop, w.again]
    at_once: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
    progress = "hidden" if events.stream else "minimal"
    in_turn = {**at_once, "show_progress": progress, "concurrency_limit": 1, "concurrency_id": "model"}
    writing = {
        "fn": events.write,
        "inputs": [w.chat, *(w.settings[n] for n in events.names), w.system, w.turns],
        "outputs": [w.bubbles, *buttons],
        **in_turn,
    }
    read = {"fn": events.read, "inputs": [w.chat], "outputs": [w.read], **at_once}
    asking = [w.question, w.image, w.settings["keep"], w.chat, w.video]
    asked = [w.chat, w.bubbles, w.question, *buttons]
    gr.on([w.send.click, w.question.submit], events.ask, asking, asked, **at_once).success(**writing).then(**read)
    w.again.click(events.again, [w.chat], [w.bubbles, *buttons], **at_once).success(**writing).then(**read)
    w.stop.click(events.stop, [w.chat], None, **at_once)
    emptied = [w.bubbles, w.image, w.video, w.question, *buttons]
    gr.on([w.restart.click, w.bubbles.clear], events.restart, [w.chat], emptied, **at_once)
    w.image.upload(functools.partial(events.check, Image), [w.image], [w.image], **at_once)
    w.video.upload(functools.partial(events.check, Video), [w.video], [w.video], **at_once)
