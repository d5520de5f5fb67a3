"""Published tensors to those of the installed transformers, by its own conversion rules.

transformers renames modules from version to version and fuses some: the experts of a mixture, which published files
hold one by one, are one tensor per layer since version 5.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from vlm.common.errors import WeightsError


@dataclass
class Step:
    """Tensors of a file that make one or more of a model's.

    Attributes:
        name: of the (first) tensor that is made.
        sources: names in the file, each with the pattern of the rule that it matched.
        rule: of transformers, which fuses or splits them; None: the tensor as it is.
    """

    name: str
    sources: list[tuple[str, str | None]]
    rule: Any = None

    def make(self, model: Any, read: Callable[[str], Tensor], file: str) -> dict[str, Tensor]:
        """The model's tensors, by its names.

        Args:
            model: of transformers.
            read: gives a tensor of the file.
            file: name for messages.

        Raises:
            WeightsError: tensors that are to be fused do not fit one another.
        """
        if self.rule is None:
            return {self.name: read(self.sources[0][0])}
        rule = copy.deepcopy(self.rule)
        for key, pattern in self.sources:
            rule.add_tensor(self.name, key, pattern, read(key))
        try:
            made = rule.convert(self.name, model=model, config=model.config)
        except (RuntimeError, ValueError, KeyError, IndexError) as error:
            text = f"{file}: the tensors of {self.name} ({self.sources[0][0]}, ...) do not fit one another: {error}"
            raise WeightsError(text, fix="download the files again, and all of them") from error
        return {target: value[0] if isinstance(value, list) else value for target, value in made.items()}


def planned(model: Any, names: Iterable[str], have: Collection[str], rules: Sequence[Any] | None = None) -> list[Step]:
    """How the tensors of a file become the model's, without reading any.

    Args:
        model: of transformers.
        names: in the file.
        have: names of the model's parameters and buffers, before LoRA wraps any.
        rules: of transformers; None: those for files of the model's own family.
    """
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key

    rules = get_model_conversion_mapping(model) if rules is None else rules
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    base, known = model.base_model_prefix, dict.fromkeys(have, True)
    steps: list[Step] = []
    fused: dict[str, Step] = {}
    for key in sorted(names, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, base, known)
        if name not in known:  # the rules meant another file: only the base model's prefix may be missing
            plain = rename_source_key(key, [], [], base, known)[0]
            name, pattern = plain if plain in known else key, None
        if pattern is None:
            steps.append(Step(name, [(key, None)]))
        elif name in fused:
            fused[name].sources.append((key, pattern))
        else:
            fused[name] = Step(name, [(key, pattern)], by_pattern[pattern])
            steps.append(fused[name])
    return steps


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
    placed: dict[str, Tensor] = {}
    theirs: dict[str, str] = {}
    for step in planned(model, tensors, have):
        made = step.make(model, tensors.__getitem__, file)
        placed |= made
        for name in made:
            theirs.setdefault(name, step.sources[0][0])
    return placed, theirs


def left_out(model: Any, name: str) -> bool:
    """Whether transformers leaves out a tensor of this name that the model has no place for."""
    patterns = model._keys_to_ignore_on_load_unexpected or ()
    return any(re.search(pattern, name) for pattern in patterns)
