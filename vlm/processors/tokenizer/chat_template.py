"""The chat template of a Hugging Face folder: Jinja text in one of four files.

They are looked up in the order of transformers' processors and tokenizers: ``processor_config.json``,
``chat_template.json``, ``chat_template.jinja``, ``tokenizer_config.json``. Nothing is executed here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlm.common.errors import ConfigError, WeightsError
from vlm.common.text import read_text
from vlm.models.llm.gguf_header import TEMPLATE, is_gguf, read_gguf

FILES = ("processor_config.json", "chat_template.json", "chat_template.jinja", "tokenizer_config.json")
DEFAULT = "default"
MAX_BYTES = 2**20
"""The largest published template is a few tens of kilobytes."""


@dataclass(frozen=True)
class ChatTemplateText:
    """The Jinja text of a chat template, and the file that it is from."""

    text: str
    file: str


def read_chat_template(folder: str | Path, name: str = DEFAULT) -> ChatTemplateText | None:
    """The chat template of a folder; None if no file has one.

    Args:
        folder: of a tokenizer or processor, or a GGUF file.
        name: which one, where ``tokenizer_config.json`` lists several.

    Raises:
        WeightsError: a file that is not JSON, or an entry that is not a template; a damaged GGUF file.
        ConfigError: several templates, none of them ``name``.
    """
    folder = Path(folder)
    if is_gguf(folder):
        text = read_gguf(folder).metadata.get(TEMPLATE)
        return ChatTemplateText(text, str(folder)) if isinstance(text, str) and text else None
    for file in (folder / name for name in FILES):
        found = _entry(file) if file.is_file() else None
        if isinstance(found, list):
            found = {str(item.get("name")): item.get("template") for item in found if isinstance(item, dict)}
        if isinstance(found, dict):
            if name not in found:
                raise ConfigError(
                    f"{file}: chat_template has {', '.join(found) or 'nothing'}, none of them {name!r}",
                    fix="set model.template.chat_template to one of these names, to a Jinja text or to a .jinja file",
                )
            found = found[name]
        if found is not None and not isinstance(found, str):
            raise WeightsError(f"{file}: chat_template is {found!r:.80}, expected text", fix="fetch the file again")
        if found:
            return ChatTemplateText(found, str(file))
    return None


def _entry(file: Path) -> Any:
    """A whole ``.jinja`` file; the key ``chat_template`` of a JSON file, if it has one."""
    if file.suffix == ".jinja":
        return read_text(file, error=WeightsError, max_bytes=MAX_BYTES)
    try:
        content = json.loads(read_text(file, error=WeightsError))
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{file} is not JSON: {error}", fix="fetch the file again") from error
    return content.get("chat_template") if isinstance(content, dict) else None
