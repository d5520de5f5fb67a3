"""What a chat template does, found by rendering conversations of one letter a message.

How contents are passed (as a text, or as a list of parts), what it writes for an image, what precedes an answer, and
how an answer ends.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from vlm.common.errors import ConfigError, PromptError
from vlm.common.types import Image, Role, Video
from vlm.processors.templates.base import MEDIUM
from vlm.processors.templates.locating import Turn
from vlm.processors.templates.rendering import JinjaTemplate

ASKED, ANSWERED, MORE = "\U000ff001", "\U000ff002", "\U000ff003"
"""Contents of the messages: private letters, so that they are found again."""
KINDS: dict[type, str] = {Image: "image", Video: "video"}
_SPELLED = re.compile("['\"]type['\"]")
"""A list of parts that was written as a list, by a template that expects text."""


@dataclass(frozen=True)
class Form:
    """How a conversation is given to a template.

    Attributes:
        template: the Jinja text.
        lists: roles whose content is a list of parts; that of others is a text.
        kinds: types of the parts of images and videos.
        tokens: what the text has where an image or video is.
        around: texts before and after a medium in a content that is a text.
        repeat: how often the template writes the token for one image; some write it for each visual token.
    """

    template: JinjaTemplate
    lists: frozenset[str]
    kinds: Mapping[type, str]
    tokens: Mapping[type, str]
    around: tuple[str, str] = ("", "")
    repeat: int = 1

    def render(self, turns: Sequence[Turn], open_turn: bool = False) -> str:
        """The text of a conversation. Raises PromptError: see :meth:`JinjaTemplate.render`."""
        return self.template.render([{"role": t.role, "content": self._content(t)} for t in turns], open_turn)

    def _content(self, turn: Turn) -> Any:
        if turn.role in self.lists:
            return [_text(p) if isinstance(p, str) else {"type": self.kinds[type(p)]} for p in turn.pieces]
        before, after = self.around
        return "".join(p if isinstance(p, str) else before + self.tokens[type(p)] + after for p in turn.pieces)


@dataclass(frozen=True)
class Facts:
    """What :func:`read_facts` finds.

    Attributes:
        form: how a conversation is given to the template.
        control: finds the tokens that stay literal in somebody's words.
        opening: what precedes an answer since the question: the generation prompt.
        end: what follows an answer; empty: nothing does.
        ends: finds an end where an answer is over.
    """

    form: Form
    control: re.Pattern[str]
    opening: str
    end: str
    ends: re.Pattern[str]


def read_form(
    template: JinjaTemplate,
    control: re.Pattern[str],
    media_token: str,
    named: Mapping[str, str],
    around: tuple[str, str],
) -> Form:
    """How a template takes contents and images.

    Args:
        template: the template.
        control: finds control tokens.
        media_token: the token of a medium, if the configuration names it.
        named: tokens that the folder names, by ``image`` and ``video``.
        around: texts before and after a medium in a content that is a text.

    Raises ConfigError: the token that it writes for an image cannot be told, or the tokenizer does not have it.
    """
    written = {kind: _written(template, name) for kind, name in KINDS.items()}
    shown = written[Image]
    if shown is None:
        token = media_token or MEDIUM
        return Form(template, frozenset(), KINDS, dict.fromkeys(KINDS, token), around)
    lists = {"user", *(role for role in ("system", "assistant") if _takes_parts(template, role))}
    found = {
        kind: [*(Counter(control.findall(pair[0])) - Counter(control.findall(pair[1])))] if pair else []
        for kind, pair in written.items()
    }
    image, video = (_chosen(found[kind], name, named.get(name, "")) for kind, name in KINDS.items())
    image = media_token or image or _refuse(template, found[Image], shown)
    repeat = max(shown[0].count(image) - shown[1].count(image), 1)
    if not video:  # it is shown as an image
        tokens = dict.fromkeys(KINDS, image)
        return Form(template, frozenset(lists), dict.fromkeys(KINDS, "image"), tokens, around, repeat)
    return Form(template, frozenset(lists), KINDS, {Image: image, Video: video}, around, repeat)


def _written(template: JinjaTemplate, kind: str) -> tuple[str, str] | None:
    """A question with a part of that kind and without; None for a template that does not take such a part."""
    with_it = _render(template, ("user", [{"type": kind}, _text(ASKED)]))
    without = _render(template, ("user", [_text(ASKED)]))
    if None in (with_it, without) or with_it == without or ASKED not in str(with_it) or _SPELLED.search(str(with_it)):
        return None
    return str(with_it), str(without)


def _takes_parts(template: JinjaTemplate, role: Role) -> bool:
    own, asked = (role, [_text(ANSWERED)]), ("user", [_text(ASKED)])
    text = _render(template, *((own, asked) if role == "system" else (asked, own)))
    return text is not None and ANSWERED in text and not _SPELLED.search(text)


def _chosen(found: Sequence[str], kind: str, named: str) -> str:
    """The token of an image or video among those that are written for it; empty if that cannot be told."""
    spelled = [t for t in found if kind in t.lower() or (kind == "image" and "img" in t.lower())]
    choices = [named] if named in found else [], found, spelled
    return next((choice[0] for choice in choices if len(choice) == 1), "")


def _refuse(template: JinjaTemplate, found: Sequence[str], written: tuple[str, str]) -> NoReturn:
    """Raises ConfigError: no token, or no single one, is where an image is."""
    if found:
        raise ConfigError(
            f"the chat template ({template.name}) writes {', '.join(found)} for an image",
            fix="set model.template.media_token to the one of these that the visual tokens replace",
        )
    text = _between(*written)
    raise ConfigError(
        f"the chat template ({template.name}) writes {text!r:.100} for an image, which holds no special token of the "
        "tokenizer",
        fix=f"add it: model.text.special_tokens: [{text.strip()!r:.60}], or use the tokenizer of the template",
    )


def read_facts(form: Form, control: re.Pattern[str], end_texts: Sequence[str]) -> Facts:
    """How answers begin and end.

    Args:
        form: how a conversation is given to the template.
        control: finds control tokens.
        end_texts: the model's end tokens.

    Raises ConfigError: the template fails, or does not write the answer.
    """
    asked, answered, more = Turn("user", (ASKED,)), Turn("assistant", (ANSWERED,)), Turn("user", (MORE,))
    try:
        prompt, whole = form.render([asked], open_turn=True), form.render([asked, answered])
        longer = form.render([asked, answered, more])
    except PromptError as error:
        raise ConfigError(str(error)) from error
    if whole.count(ANSWERED) != 1 or ASKED not in prompt or longer.count(ANSWERED) != 1:
        raise ConfigError(
            f"the chat template ({form.template.name}) does not write what the user and the assistant say, once each",
            fix="set model.template.chat_template to a Jinja text that does, or another model.template",
        )
    opening = prompt[prompt.rindex(ASKED) + 1 :]
    rest = whole.split(ANSWERED)[1]
    token = re.match(rf"\s*({control.pattern})", rest)
    both = os.path.commonprefix([rest, longer.split(ANSWERED)[1]])
    end = token.group(1) if token else both.strip()
    ends = "|".join(re.escape(text) for text in dict.fromkeys([end, *end_texts]) if text)
    return Facts(form, control, opening, end, re.compile(rf"\s*(?:{ends})" if ends else "(?!)"))


def _render(template: JinjaTemplate, *messages: tuple[str, Any]) -> str | None:
    try:
        return template.render([{"role": role, "content": content} for role, content in messages], False)
    except PromptError:
        return None


def _text(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def _between(longer: str, shorter: str) -> str:
    """What ``longer`` has in the middle that ``shorter`` does not have."""
    start = len(os.path.commonprefix([longer, shorter]))
    end = len(os.path.commonprefix([longer[start:][::-1], shorter[start:][::-1]]))
    return longer[start : len(longer) - end]
