"""The widgets of the chat page and what they do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from vlm.common.errors import UserError
from vlm.inference.engine import Engine
from vlm.inference.generation import CHAT, Generation
from vlm.serve import gradio_app_look as look
from vlm.serve.examples import Example
from vlm.serve.page_chat import PageChat

QUESTION = "What is in the picture?"


def build(engine: Engine, generation: Generation = CHAT, examples: Sequence[Example] = (), pixels: bool = False) -> Any:
    """The page as a ``gradio.Blocks``, not started.

    Args:
        engine: answers.
        generation: where the settings start.
        examples: pictures and questions to click.
        pixels: show small pictures with hard pixels instead of blurred.
    """
    import gradio as gr

    with gr.Blocks(title="vlm chat", analytics_enabled=False, fill_height=True) as page:
        chat = gr.State(None)
        gr.HTML(look.header(engine))
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=300):
                picture = gr.Image(
                    type="filepath",
                    label="Picture",
                    sources=list(look.CAMERA_SOURCES),
                    height=290,
                    elem_id="picture",
                    elem_classes=["pixels"] if pixels else [],
                    buttons=["fullscreen"],
                )
                gr.HTML(look.HINT)
                settings = _settings(gr, generation)
            with gr.Column(scale=5, min_width=420):
                bubbles = gr.Chatbot(
                    label="Conversation",
                    show_label=False,
                    height=470,
                    elem_id="chat",
                    elem_classes=["pixels"] if pixels else [],
                    layout="bubble",
                    buttons=["copy"],
                    placeholder=look.placeholder(examples[0][1] if examples else QUESTION, bool(examples)),
                )
                with gr.Row():
                    question = gr.Textbox(
                        show_label=False,
                        placeholder="Type a question about the picture and press Enter",
                        lines=1,
                        max_lines=5,
                        scale=8,
                        autofocus=True,
                        elem_id="question",
                        container=False,
                    )
                    send = gr.Button("Send", variant="primary", scale=1, min_width=90, elem_id="send")
                with gr.Row():
                    stop = gr.Button("Stop", interactive=False, size="sm", elem_id="stop")
                    again = gr.Button("Regenerate", interactive=False, size="sm", elem_id="again")
                    restart = gr.Button("Restart", size="sm", elem_id="restart")
                _shortcuts(gr, engine, question)
        if examples:
            _gallery(gr, examples, picture, question)
        _wire(gr, engine, generation, chat, picture, bubbles, question, send, stop, again, restart, settings)
    return page


def _settings(gr: Any, start: Generation) -> dict[str, Any]:
    """The settings, by their name in ``Generation`` (and ``keep``)."""
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        made = {
            "do_sample": gr.Checkbox(start.do_sample, label="Sample", info="off: always the most likely word"),
            "temperature": gr.Slider(0.1, 2.0, start.temperature, step=0.1, label="Temperature"),
            "top_p": gr.Slider(0.05, 1.0, start.top_p, step=0.05, label="Top-p"),
            "num_beams": gr.Slider(1, 10, start.num_beams, step=1, label="Beams", info="above 1: no word by word"),
            "max_new_tokens": gr.Slider(1, 1000, start.max_new_tokens, step=1, label="Longest answer (tokens)"),
            "repetition_penalty": gr.Slider(1.0, 2.0, start.repetition_penalty, step=0.05, label="Repetition penalty"),
            "seed": gr.Number(start.seed, label="Seed", info="empty: another answer each time", precision=0),
            "keep": gr.Checkbox(False, label="Several pictures", info="a new picture joins the conversation"),
        }
    return made


def _gallery(gr: Any, examples: Sequence[Example], picture: Any, question: Any) -> None:
    """Pictures with a question each; a click fills both in."""
    gr.HTML('<div id="examples-title">Examples: click one, then Send</div>')
    shown = gr.Gallery(
        [(path, text) for path, text in examples],
        show_label=False,
        columns=len(examples),
        rows=1,
        height="auto",
        object_fit="cover",
        allow_preview=False,
        interactive=False,
        buttons=[],
        elem_id="examples",
        elem_classes=["pixels"],
    )

    def pick(event: Any) -> list[str]:
        return list(examples[event.index])

    pick.__annotations__["event"] = gr.SelectData  # how gradio knows to pass the event
    shown.select(pick, None, [picture, question], queue=False, show_progress="hidden", api_visibility="private")


def _shortcuts(gr: Any, engine: Engine, question: Any) -> None:
    """Buttons that write the task texts which the model's template knows, if it knows any."""
    texts: Sequence[str] = getattr(engine.processor.template.config, "shortcuts", ())
    if texts:
        gr.Examples([[t] for t in texts], [question], label="Tasks of this model", elem_id="tasks")


def _wire(
    gr: Any,
    engine: Engine,
    generation: Generation,
    chat: Any,
    picture: Any,
    bubbles: Any,
    question: Any,
    send: Any,
    stop: Any,
    again: Any,
    restart: Any,
    settings: dict[str, Any],
) -> None:
    """Connect the widgets. Answers are written one at a time; the rest happens at once."""
    buttons = [send, stop, again]
    names = [n for n in settings if n != "keep"]

    def working(on: bool) -> list[Any]:
        return [gr.update(interactive=not on), gr.update(interactive=on), gr.update(interactive=not on)]

    def ask(text: str, path: str | None, keep: bool, mine: PageChat | None) -> list[Any]:
        mine = mine or PageChat(engine)
        try:
            mine.ask(text, path, keep)
        except UserError as error:
            raise gr.Error(str(error), title="Not asked", print_exception=False) from error
        return [mine, mine.shown, "", *working(True)]

    def write(mine: PageChat, *values: Any) -> Iterator[list[Any]]:
        try:
            options = generation.but(**_typed(dict(zip(names, values, strict=True))))
            for shown in mine.write(options):
                yield [shown, *working(True)]
        except UserError as error:
            gr.Warning(str(error), title="Not answered")
        yield [mine.shown, *working(False)]

    def once_more(mine: PageChat | None) -> list[Any]:
        try:
            if mine is not None:
                mine.again()
        except UserError as error:
            raise gr.Error(str(error), print_exception=False) from error
        return [mine.shown if mine is not None else [], *working(True)]

    def halt(mine: PageChat | None) -> None:
        if mine is not None:
            mine.stop()

    def begin(mine: PageChat | None) -> list[Any]:
        if mine is not None:
            mine.restart()
        return [[], None, "", gr.update(interactive=True), gr.update(interactive=False), gr.update(interactive=False)]

    at_once = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    slow = {"concurrency_id": "model", "concurrency_limit": 1, "show_progress": "hidden", "api_visibility": "private"}
    writing = {"fn": write, "inputs": [chat, *(settings[n] for n in names)], "outputs": [bubbles, *buttons], **slow}
    asking = [question, picture, settings["keep"], chat]
    gr.on([send.click, question.submit], ask, asking, [chat, bubbles, question, *buttons], **at_once).success(**writing)
    again.click(once_more, [chat], [bubbles, *buttons], **at_once).success(**writing)
    stop.click(halt, [chat], None, **at_once)
    gr.on([restart.click, bubbles.clear], begin, [chat], [bubbles, picture, question, *buttons], **at_once)


def _typed(values: dict[str, Any]) -> dict[str, Any]:
    """Slider values as the types of ``Generation``."""
    whole = {"num_beams", "max_new_tokens"}
    seed = values.pop("seed", None)
    typed = {name: int(value) if name in whole else value for name, value in values.items()}
    return {**typed, "seed": None if seed is None else int(seed)}
