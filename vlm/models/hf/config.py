"""The configuration of a transformers model: from a folder's ``config.json``, or written out in YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from vlm.common.errors import ConfigError, WeightsError
from vlm.common.file_kind import mistaken
from vlm.common.paths import inner_folder

CONTRADICTIONS = (
    *(ValueError, TypeError, RuntimeError, AssertionError, ArithmeticError, LookupError, StopIteration),
    *(AttributeError, MemoryError, StrictDataclassError),
)
"""What the libraries below raise for sizes that contradict each other and for options that they do not know."""


def read_hf_config(
    path: str | None, sizes: Mapping[str, Any] | None, part: str, what: str, folders: Sequence[str] = ()
) -> Any:
    """The transformers configuration of a folder, or of sizes written out with their ``model_type``.

    Args:
        path: folder with config.json, or with one of ``folders`` that has it.
        sizes: the content of a config.json.
        part: for messages, such as ``model.llm``.
        what: what the folder should hold, such as "language model".
        folders: subfolders in which a model saved in parts keeps it.

    Raises:
        ConfigError: neither or both given, or an unknown ``model_type``.
        WeightsError: the folder has no config.json, a damaged one, or one that needs code of its own (never run).
    """
    from transformers import CONFIG_MAPPING, AutoConfig

    if (path is None) == (sizes is None):
        raise ConfigError(f"{part} needs exactly one of path (a Hugging Face folder) and config (sizes written out)")
    if sizes is not None:
        options = dict(sizes)
        kind = options.pop("model_type", None)
        if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
            raise ConfigError(f"{part}.config.model_type: transformers knows no model type {kind!r}")
        return AutoConfig.for_model(kind, **options)
    folder = inner_folder(str(path), folders)
    if not (folder / "config.json").is_file():
        fix = f"give the Hugging Face folder of a {what}: config.json and weights"
        raise WeightsError(f"{part}.path: no {what} in {folder} (config.json is missing)", fix=fix)
    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, *CONTRADICTIONS) as error:
        if "trust_remote_code" in str(error):
            message = f"{folder}: needs Python code that came with it (auto_map in config.json), which is never run"
            fix = "use a model whose model_type transformers knows, or register a class of your own: docs/extend"
            raise WeightsError(message, fix=fix) from None
        text = mistaken(folder / "config.json") or f"{folder / 'config.json'}: {error!s:.600}"
        raise WeightsError(text) from error


def written(config: Any) -> dict[str, Any]:
    """A transformers configuration as plain data that :func:`read_hf_config` takes in place of a folder."""
    left_out = ("id2label", "label2id", "transformers_version")
    return {key: value for key, value in config.to_dict().items() if not key.startswith("_") and key not in left_out}
