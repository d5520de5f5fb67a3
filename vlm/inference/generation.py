"""The options of an answer, with the published presets."""

from __future__ import annotations

import dataclasses
import numbers
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

from vlm.common.bounds import Count, Natural, Positive, Range, violations
from vlm.common.errors import ConfigError, UserError
from vlm.common.registry import register_generation

if TYPE_CHECKING:
    from vlm.config.api import Config

Context = Literal["turns", "published"]
LengthForm = Literal["published", "prompt", "answer"]
Cleanup = Literal["chat", "answer", "raw"]


@register_generation("default")
@dataclass(frozen=True)
class Generation:
    """Options of one answer; immutable, checked when made.

    The defaults are those of the published chat (Vision-CAIR's ``Chat.answer``). ``max_length`` is the length of
    prompt and answer together, visual tokens included. ``min_length`` includes the BOS position (as in transformers
    4.30): 2 means "at least one token".
    """

    max_new_tokens: Count = 300
    num_beams: Count = 1
    do_sample: bool = True
    min_length: Natural = 1
    top_p: Annotated[float, Range(above=0, most=1)] = 0.9
    top_k: Natural = 50
    """0: off. The published chat leaves it at the default of transformers, 50."""
    temperature: Positive = 1.0
    repetition_penalty: Positive = 1.05
    no_repeat_ngram_size: Natural = 0
    """No n-gram of this length occurs twice in an answer (0: off); like the penalty, it ignores the prompt."""
    length_penalty: Annotated[float, Range()] = 1.0
    """With beams: the sum of log probabilities is divided by ``length ** length_penalty``."""
    length_penalty_form: LengthForm = "published"
    """What ``length`` counts besides the answer: ``published`` a dummy first token, as when a prompt was given as
    embeddings; ``prompt`` the prompt, as when it was given as tokens; ``answer`` nothing, as current versions of
    transformers count (end id included)."""
    max_length: Count = 2000
    seed: Annotated[int, Range(-(2**63), 2**63 - 1)] | None = None
    """Same seed, same text, on any device and in any batch; None: a new seed each time."""
    stop: tuple[str, ...] | None = None
    """Texts that end an answer, besides the end-of-sequence token; None: those of the template."""
    context: Context = "turns"
    """Of a conversation that is too long, ``turns`` drops the oldest turns; ``published`` cuts off its left end."""
    cleanup: Cleanup = "chat"
    """``chat``: the template's rule; ``answer``: the rule of the published evaluation; ``raw``: only strip spaces."""
    use_cache: bool = True
    """False recomputes the whole sequence for each token (for tests and for models without a cache)."""

    def __post_init__(self) -> None:
        """Raises ConfigError: values outside their range, all in one message."""
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        self._check_types()
        problems = violations(self)
        if 0 < self.temperature < 1e-6:
            problems.append(f"temperature is {self.temperature}, too small to divide by (do_sample: false is 0)")
        for name, kind in (("length_penalty_form", LengthForm), ("context", Context), ("cleanup", Cleanup)):
            if (value := getattr(self, name)) not in get_args(kind):
                problems.append(f"{name} is {value!r}, must be {' or '.join(get_args(kind))}")
        if problems:
            raise ConfigError("generation options: " + "; ".join(problems))

    def _check_types(self) -> None:
        """Raises ConfigError: values of another type; 1 is a float, and the integers and floats of numpy are theirs."""
        problems = []
        for field in dataclasses.fields(self):
            name, value = field.name, vars(self)[field.name]
            wanted = {"seed": int, "stop": tuple}.get(name, type(field.default))
            number = {int: numbers.Integral, float: numbers.Real}.get(wanted)
            fits = isinstance(value, number) and not isinstance(value, bool) if number else isinstance(value, wanted)
            if wanted is tuple:
                fits = isinstance(value, tuple | list) and all(isinstance(text, str) for text in value)
            if not fits and not (value is None and name in ("seed", "stop")):
                problems.append(f"{name} is {value!r}, expected {'texts' if wanted is tuple else wanted.__name__}")
        if problems:
            raise ConfigError("generation options: " + "; ".join(problems))

    @property
    def min_new_tokens(self) -> int:
        """Tokens before the end-of-sequence token is allowed (see ``min_length``)."""
        return max(0, self.min_length - 1)

    def replace(self, **changes: Any) -> Generation:
        """A copy with some options changed. Raises UserError: an unknown option or a value outside its range."""
        known = [f.name for f in dataclasses.fields(self)]
        for name in changes:
            if name not in known:
                raise UserError(f"unknown generation option {name!r} (known: {', '.join(known)})")
        return dataclasses.replace(self, **changes)


CHAT = Generation()
"""Published chat: sampled, at most 300 new tokens, repetition penalty 1.05."""

EVALUATION = Generation(max_new_tokens=20, do_sample=False, repetition_penalty=1.0)
"""Published evaluation: greedy, 20 new tokens."""


def default_generation(cfg: Config | None, base: Generation = CHAT) -> Generation:
    """How a model answers by default: ``base`` with ``model.generation`` over it; a plugin's class is its own base."""
    if cfg is None:
        return base
    own = cfg.model.generation
    return base.replace(**own.given) if type(own.config) is Generation else own.config
