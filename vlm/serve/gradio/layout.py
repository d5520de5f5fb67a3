"""The widgets of the chat page, and their events."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import gradio as gr

from vlm.inference.engine import Engine
from vlm.serve.gradio import theme as look
from vlm.serve.gradio.events import Events, Models, add_file, template_option
from vlm.serve.gradio.examples import Example
from vlm.serve.gradio.rating import DOWN, UP, Ratings
from vlm.serve.gradio.uploads import KEPT_SECONDS, upload_folder

QUESTION = "What is in the image?"
TOGETHER = 32
"""Questions that are answered at the same time, over all visitors; an engine may take fewer."""


@dataclass
class Widgets:
    """What the events read and change; ``settings`` by their name in ``Generation``, and ``keep``.

    ``view`` are those that :meth:`Events.view` has values for.
    """

    chat: gr.State
    chosen: gr.CheckboxGroup
    lanes: list[gr.Column]
    settings: dict[str, Any]
    question: gr.MultimodalTextbox
    camera: gr.Image
    view: list[Any]
    buttons: dict[str, gr.Button]
    prompt: tuple[gr.Textbox, gr.Slider, gr.Textbox]
    file: gr.Textbox
    feedback: Feedback | None


@dataclass
class Feedback:
    """The row below the conversation, about the answer that was rated last."""

    row: gr.Column
    about: gr.HTML
    correction: gr.Textbox
    keep: gr.Button


def build(
    models: Models,
    examples: Sequence[Example] = (),
    pixels: bool = False,
    stream: bool = True,
    ratings: Ratings | None = None,
) -> gr.Blocks:
    """The page, not started.

    Args:
        models: answer; the page's settings start from the first one's.
        examples: images and questions to click.
        pixels: enlarge small images without smoothing.
        stream: show answers as they grow.
        ratings: what keeps feedback; None: the page asks for none.
    """
    classes = ["pixels"] if pixels else []
    upload_folder()  # before the first widget, which remembers where its files go
    blocks = gr.Blocks(title="vlm chat", analytics_enabled=False, fill_height=True, delete_cache=(600, KEPT_SECONDS))
    with blocks as page:
        gr.HTML(look.header(models.engines), padding=False)
        with gr.Row(equal_height=False, elem_id="main"):
            with gr.Column(scale=1, min_width=260, elem_id="side"):
                chosen = _choice(list(models.engines))
                gr.HTML(look.static("hint.html"), padding=False)
                with gr.Accordion("Camera", open=False, elem_id="camera-box"):
                    camera = _camera()
                settings = _settings(models)
                prompt = accordion(models.first)
            with gr.Column(scale=4, min_width=400, elem_id="talk"):
                hint = look.placeholder(examples[0][1] if examples else QUESTION, bool(examples))
                with gr.Row(elem_id="lanes", equal_height=True):
                    thumbs = [UP, DOWN] if ratings is not None else None
                    made = (_lane(models, name, classes, hint, thumbs) for name in models.engines)
                    lanes, bubbles, figures = zip(*made)
                feedback = None if ratings is None else _feedback(ratings)
                branch = _branches()
                with gr.Row(elem_id="ask"):
                    question = _question(models)
                    buttons = {"send": gr.Button(**look.widget("send"))}
                _shortcuts(models, question)
                with gr.Row(elem_id="actions"):
                    names = ("stop", "again", "undo", "restart", "html", "json")
                    buttons |= {name: gr.Button(**look.widget(name)) for name in names}
                file = gr.Textbox(visible="hidden", elem_id="file", show_label=False)
        if examples:
            _gallery(examples, question, classes)
        events = Events(models, [n for n in settings if n != "keep"], stream, upload_folder().admit, ratings)
        chat = gr.State(None, time_to_live=KEPT_SECONDS, delete_callback=events.forget)
        view = [*bubbles, *figures, *branch, *(buttons[n] for n in ("send", "stop", "again", "undo"))]
        view += [feedback.row, feedback.about] if feedback is not None else []
        widgets = Widgets(chat, chosen, list(lanes), settings, question, camera, view, buttons, prompt, file, feedback)
        _wire(widgets, events)
    return page


def _choice(names: list[str]) -> gr.CheckboxGroup:
    return gr.CheckboxGroup(names, value=names, visible=len(names) > 1, **look.widget("models"))


def _lane(
    models: Models, name: str, classes: list[str], hint: str, thumbs: list[str] | None
) -> tuple[gr.Column, gr.Chatbot, gr.HTML]:
    """The conversation with one model, under its name if there are several, and the numbers of its last answer."""
    several = len(models.engines) > 1
    number = "" if name == next(iter(models.engines)) else f"-{list(models.engines).index(name) + 1}"
    with gr.Column(min_width=240, elem_classes=["lane"]) as lane:
        gr.HTML(look.lane_title(name), visible=several, padding=False)
        given = {**look.widget("chat"), "label": f"Conversation with {name}", "elem_id": f"chat{number}"}
        given["feedback_options"] = thumbs
        bubbles = gr.Chatbot(elem_classes=["chat", *classes], placeholder=hint, **given)
        return lane, bubbles, gr.HTML("", elem_id=f"figures{number}", elem_classes=["figures"], padding=False)


def _feedback(ratings: Ratings) -> Feedback:
    """What is kept and where, and the row of the answer that was rated last."""
    gr.HTML(ratings.line, padding=False)
    with gr.Column(visible=False, elem_id="feedback") as row:
        about = gr.HTML("", elem_id="rated", padding=False)
        with gr.Row(elem_id="words"):
            correction = gr.Textbox(**look.widget("correction"))
            keep = gr.Button(**look.widget("keep_words"))
    return Feedback(row, about, correction, keep)


def _branches() -> tuple[gr.Row, gr.HTML, gr.Button, gr.Button]:
    with gr.Row(visible=False, elem_id="branches") as row:
        earlier = gr.Button(**look.widget("earlier"))
        text = gr.HTML("", elem_id="branch", padding=False)
        later = gr.Button(**look.widget("later"))
    return row, text, earlier, later


def _question(models: Models) -> gr.MultimodalTextbox:
    videos = any(engine.processor.video is not None for engine in models.engines.values())
    kinds = ["image", "video"] if videos else ["image"]
    return gr.MultimodalTextbox(file_types=kinds, **look.widget("question"))


def _camera() -> gr.Image:
    """A photo as it was uploaded; its events return values only, since an update makes Gradio take a plain widget."""
    camera = gr.Image(**look.widget("camera"))
    vars(camera)["preprocess"] = lambda value: None if value is None else value.path
    return camera


def _settings(models: Models) -> dict[str, Any]:
    values = {**vars(next(iter(models.generation.values()))), "keep": False}
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


def _gallery(examples: Sequence[Example], question: gr.MultimodalTextbox, classes: list[str]) -> None:
    """Images with a question each; a click fills both in."""
    gr.HTML('<div id="examples-title">Examples: click one, then Send</div>', padding=False)
    shown = gr.Gallery(list(examples), columns=len(examples), elem_classes=classes, **look.widget("examples"))

    def pick(event: gr.SelectData) -> Any:
        known = isinstance(event.index, int) and 0 <= event.index < len(examples)
        return {"text": examples[event.index][1], "files": [examples[event.index][0]]} if known else gr.skip()

    shown.select(pick, None, [question], show_progress="hidden", api_visibility="private")


def _shortcuts(models: Models, question: gr.MultimodalTextbox) -> None:
    """Buttons that start a question with a task text, for templates that have them."""
    found = [text for engine in models.engines.values() for text in engine.processor.template.task_texts]
    if texts := list(dict.fromkeys(found)):
        with gr.Row(elem_id="tasks"):
            for text in texts:
                button = gr.Button(text.strip(), size="sm", min_width=60)
                click = functools.partial(_begin_with, text)
                button.click(click, [question], [question], show_progress="hidden", api_visibility="private")


def _begin_with(text: str, box: Any) -> dict[str, Any]:
    return {"text": text, "files": box["files"] if box else []}


def _wire(w: Widgets, events: Events) -> None:
    """Connect events; everything but the writing of answers runs in parallel for any number of visitors."""
    at_once: dict[str, Any] = {"concurrency_limit": None, "show_progress": "hidden", "api_visibility": "private"}
    decoding = {**at_once, "concurrency_limit": 2, "concurrency_id": "decoding"}  # of images near the limit of pixels
    system, turns, read_text = w.prompt
    bubbles = w.view[: len(w.lanes)]
    writing = {
        **at_once,
        "fn": events.write,
        "inputs": [w.chat, *(w.settings[n] for n in events.names), system, turns],
        "outputs": w.view,
        "concurrency_limit": TOGETHER,
        "concurrency_id": "model",
        "show_progress": "minimal",  # the place in the queue
        "show_progress_on": bubbles,
    }
    read = {"fn": events.read, "inputs": [w.chat], "outputs": [read_text], **at_once}
    asking = [w.question, w.settings["keep"], w.chosen, w.chat]
    send = [w.buttons["send"].click, w.question.submit]
    gr.on(send, events.ask, asking, [w.chat, w.question, *w.view], **decoding).success(**writing).then(**read)
    redraw = [w.chosen, w.chat, w.settings["do_sample"], w.settings["seed"]]
    w.buttons["again"].click(events.again, redraw, w.view, **at_once).success(**writing).then(**read)
    for name, bubble in zip(events.models.engines, bubbles):
        edited = _edited(events, name)
        bubble.edit(edited, [w.chosen, w.chat], w.view, **at_once).success(**writing).then(**read)
    w.buttons["undo"].click(events.undo, [w.question, w.chat], [w.question, *w.view], **at_once)
    earlier, later = w.view[2 * len(bubbles) + 2 : 2 * len(bubbles) + 4]
    earlier.click(functools.partial(events.go, -1), [w.chat], w.view, **at_once)
    later.click(functools.partial(events.go, 1), [w.chat], w.view, **at_once)
    w.buttons["stop"].click(events.stop, [w.chat], w.view, **at_once)
    restart = [w.buttons["restart"].click, *(bubble.clear for bubble in bubbles)]
    gr.on(restart, events.restart, [w.chat], [w.question, *w.view], **at_once)
    if w.feedback is not None:
        correction = w.feedback.correction
        for name, bubble in zip(events.models.engines, bubbles):
            bubble.like(_liked(events, name), [w.chat], [correction, *w.view], **at_once)
        gr.on([w.feedback.keep.click, correction.submit], events.correct, [correction, w.chat], w.view, **at_once)
    w.camera.input(add_file, [w.camera, w.question], [w.camera, w.question], **at_once)
    w.chosen.change(functools.partial(_visible, list(events.models.engines)), [w.chosen], w.lanes, **at_once)
    for form in ("html", "json"):
        made = w.buttons[form].click(functools.partial(events.download, form), [w.chat], [w.file], **decoding)
        made.success(None, [w.file], None, js=look.static("download.js").replace("FORM", form))


def _edited(events: Events, name: str) -> Callable[..., list[Any]]:
    def edited(event: gr.EditData, chosen: Sequence[str], mine: Any) -> list[Any]:
        return events.edit(event, name, chosen, mine)

    return edited


def _liked(events: Events, name: str) -> Callable[..., list[Any]]:
    def liked(event: gr.LikeData, mine: Any) -> list[Any]:
        return events.like(event, name, mine)

    return liked


def _visible(names: Sequence[str], chosen: Sequence[str]) -> Any:
    """The lanes of the chosen models; all of them where none is chosen."""
    updates = [gr.update(visible=name in chosen or not chosen) for name in names]
    return updates if len(names) > 1 else updates[0]
