"""The tokenizer and the chat template of a folder that transformers loads."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm.checkpoint.safe import write_json
from vlm.common.errors import WeightsError
from vlm.common.types import MEDIA_TOKEN, Image, Message
from vlm.processors.processor import Processor
from vlm.processors.templates.base import WritesJinja

log = logging.getLogger(__name__)

IMAGE = "<image>"
LEGACY = {
    "type": "Sequence",
    "normalizers": [
        {"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
    ],
}
"""The slow tokenizer of LLaMA: every stretch between special tokens begins with a space."""


class HubTokenizer:
    """Our tokenizer as ``tokenizer.json``, with a token for an image.

    Attributes:
        image: the token that stands for an image in a prompt.
        folder: what the composition's tokenizer was read from.
        image_id: its id; if it is new, the first after all others.
        is_new: whether the composition's own tokenizer lacks it.
    """

    def __init__(self, processor: Processor) -> None:
        """Raises WeightsError: the tokenizer cannot be written as ``tokenizer.json``."""
        self._processor = processor
        if processor.tokenizer.folder is None:
            raise WeightsError("the tokenizer was not read from a folder, so that its files cannot be written")
        self.folder: Path = processor.tokenizer.folder
        own, template = processor.tokenizer, processor.template
        self.image: str = template.config.media_token or IMAGE
        known = own.id_of(self.image)
        self._tree = self._read()
        self.is_new = known is None
        self.image_id: int = self._next_id() if known is None else known
        if self.is_new:
            self._add(self.image, self.image_id)

    @property
    def tree(self) -> dict[str, Any]:
        """The content of ``tokenizer.json``."""
        return self._tree

    def template(self, words: str) -> str | None:
        """The chat template in Jinja with ``words`` for an image; None if the composition's template has none."""
        own = self._processor.template
        return own.jinja(words) if isinstance(own, WritesJinja) else None

    @property
    def has_template(self) -> bool:
        """Whether there is a chat template."""
        return self.template(self.image) is not None

    def _read(self) -> dict[str, Any]:
        """The tree of ``tokenizer.json`` that gives the ids of our tokenizer."""
        from transformers import AutoTokenizer

        own = self._processor.tokenizer
        if own.sentencepieces():
            try:
                found: Any = AutoTokenizer.from_pretrained(self.folder, local_files_only=True, trust_remote_code=False)
                tree: dict[str, Any] = json.loads(found.backend_tokenizer.to_str())
            except (ValueError, OSError, ImportError, AttributeError) as error:
                text = f"tokenizer folder {self.folder}: cannot be written as tokenizer.json ({error})"
                raise WeightsError(text, fix="pip install protobuf, or use a folder with tokenizer.json") from error
            if own.legacy:
                tree["normalizer"], tree["pre_tokenizer"] = LEGACY, None
        else:
            tree = json.loads((self.folder / "tokenizer.json").read_text(encoding="utf-8"))
        self._tree = tree
        known = {entry["content"] for entry in tree.get("added_tokens") or []}
        for text, token in sorted(own.special_tokens.items(), key=lambda item: item[1].id):
            if text not in known or own.sentencepieces():  # a tokenizer.json is read by its own rules
                self._add(text, token.id, token.lstrip, token.rstrip)
        return tree

    def _add(self, text: str, index: int, lstrip: bool = False, rstrip: bool = False) -> None:
        added = self._tree.setdefault("added_tokens", [])
        entry = next((e for e in added if e["content"] == text), None)
        if entry is None:
            entry = {"id": index, "content": text, "single_word": False, "normalized": False}
            added.append(entry)
            added.sort(key=lambda e: e["id"])
        entry |= {"lstrip": lstrip, "rstrip": rstrip, "special": True, "normalized": False}

    def _next_id(self) -> int:
        vocabulary = self._tree["model"]["vocab"]
        size = len(vocabulary)
        return max([size, self._processor.tokenizer.vocab_size, *(e["id"] + 1 for e in self._tree["added_tokens"])])

    def write(self, folder: Path, words: str) -> None:
        """The tokenizer and, if there is one, ``chat_template.jinja`` (see :meth:`template` for ``words``)."""
        own = self._processor.tokenizer
        roles = {"bos_token": own.bos, "eos_token": own.eos, "unk_token": own.unk, "pad_token": own.pad}
        config: dict[str, Any] = {role: own.piece(i) for role, i in roles.items() if i is not None and own.piece(i)}
        config |= {"image_token": self.image, "extra_special_tokens": {"image_token": self.image}}
        config |= {"tokenizer_class": "PreTrainedTokenizerFast", "padding_side": "left"}
        config |= {"clean_up_tokenization_spaces": False}
        (folder / "tokenizer.json").write_text(json.dumps(self._tree, ensure_ascii=False) + "\n", encoding="utf-8")
        write_json(folder / "tokenizer_config.json", config)
        if (template := self.template(words)) is not None:
            (folder / "chat_template.jinja").write_text(template, encoding="utf-8")

    def differences(self, folder: Path, words: str) -> list[str]:
        """Which of some conversations the written tokenizer and template read otherwise than the composition.

        ``words`` is what the template writes for an image.
        """
        from transformers import PreTrainedTokenizerFast

        if not self.has_template:
            return ["the composition's prompt template has no form in Jinja: write prompts yourself"]
        theirs: Any = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
        result = []
        for about, messages in PROBES.items():
            text = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            text = text.replace(words, self.image)
            found = theirs(text, add_special_tokens=False)["input_ids"]
            ours = self._ids(messages)
            if [MEDIA_TOKEN if i == self.image_id else i for i in found] != ours:
                result.append(about)
        return result

    def _ids(self, messages: Sequence[dict[str, Any]]) -> list[int]:
        """The composition's ids of a conversation."""
        processor = copy.copy(self._processor)
        processor.image = OnePlace()  # type: ignore[assignment]
        blank = processor.image(None)
        return processor.encode_chat(
            [
                Message(m["role"], [Image(blank) if part["type"] == "image" else part["text"] for part in m["content"]])
                for m in messages
            ]
        ).ids


class OnePlace:
    """An image recipe for which every image is one medium, so that only the places of images count."""

    splits, fixed_size = False, True

    def __call__(self, *_: Any) -> Any:
        """``[3, 1, 1]``."""
        from torch import zeros

        return zeros(3, 1, 1)


def _probe(*turns: tuple[str, str]) -> list[dict[str, Any]]:
    """A conversation of (role, text), ``@`` for an image before or between texts."""
    result = []
    for role, text in turns:
        parts: list[dict[str, str]] = []
        for number, piece in enumerate(text.split("@")):
            parts += [{"type": "image"}] if number else []
            parts += [{"type": "text", "text": piece}] if piece else []
        result.append({"role": role, "content": parts})
    return result


PROBES = {
    "a question about an image": _probe(("user", "@What is this?")),
    "a question without an image": _probe(("user", "What is a boat?")),
    "two images": _probe(("user", "@@Which one is larger?")),
    "a conversation of two turns": _probe(("user", "@What is this?"), ("assistant", "A boat."), ("user", "And it?")),
    "a system text": _probe(("system", "Be brief."), ("user", "@What is this?")),
}
"""Conversations that an export reads both ways."""
