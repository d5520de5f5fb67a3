"""Published tensors to those of the installed transformers, by its own conversion rules.

transformers renames modules from version to version and fuses some: the experts of a mixture, which published files
hold one by one, are one tensor per layer since version 5.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from vlm.common.errors import WeightsError


def converted(
    model: Any, tensors: Mapping[str, Tensor], have: Collection[str], file: str
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors by the model's names, and for each the (first) name in the file.

    Args:
        model: of transformers.
        tensors: by the file's names.
        have: names of the model's parameters and buffers, before LoRA wraps any.
        file: name for messages.

    Raises:
        WeightsError: tensors that are to be fused do not fit one another.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    base, known = model.base_model_prefix, dict.fromkeys(have, True)
    placed: dict[str, Tensor] = {}
    theirs: dict[str, str] = {}
    fused: dict[str, Any] = {}
    for key in sorted(tensors, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, base, known)
        if name not in known:  # the rules meant another file: only the base model's prefix may be missing
            plain = rename_source_key(key, [], [], base, known)[0]
            name, pattern = plain if plain in known else key, None
        theirs.setdefault(name, key)
        if pattern is None:
            placed[name] = tensors[key]
        else:
            rule = fused.setdefault(name, copy.deepcopy(by_pattern[pattern]))
            rule.add_tensor(name, key, pattern, tensors[key])
    for name, rule in fused.items():
        try:
            made = rule.convert(name, model=model, config=model.config)
        except (RuntimeError, ValueError, KeyError, IndexError) as error:
            text = f"{file}: the tensors of {name} ({theirs[name]}, ...) do not fit one another: {error}"
            raise WeightsError(text, fix="download the files again, and all of them") from error
        for target, value in made.items():
            placed[target] = value[0] if isinstance(value, list) else value
            theirs.setdefault(target, theirs[name])
    return placed, theirs


def left_out(model: Any, name: str) -> bool:
    """Whether transformers leaves out a tensor of this name that the model has no place for."""
    patterns = model._keys_to_ignore_on_load_unexpected or ()
    return any(re.search(pattern, name) for pattern in patterns)
