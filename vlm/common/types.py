"""The contracts between the layers.

Shape legend: b rows, s positions of a row, n media, f frames of a medium, v visual
tokens of a frame, d width, h/w pixels.

    Message -> Sample -> Example -> Batch -> Features -> Output
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from vlm.common.errors import PromptError

if TYPE_CHECKING:
    import torch

IGNORE_INDEX = -100
"""Label of a position that is not trained (torch's own default for cross entropy)."""

MEDIA_TOKEN = -200
"""Id that stands for one whole medium (image or video) in ``Example.ids`` and ``Batch.ids``.

It is negative so that it can never collide with a vocabulary id; the fusion replaces it by
the medium's visual tokens.
"""

Role = Literal["system", "user", "assistant"]
ROLES = get_args(Role)


@dataclass(frozen=True)
class Text:
    """A piece of text in a message."""

    text: str


@dataclass(frozen=True)
class Input(Text):
    """Material that an instruction works on (a passage, a list of options).

    A template with a slot for it (Alpaca's ``### Input:``) puts it there; others write it on a line of its own.
    """


@dataclass(frozen=True)
class Image:
    """An image in a message: a path, encoded bytes, ``PIL.Image.Image``, array or tensor. Decoded by the processor.

    A tuple of these is shown side by side as one image. A float tensor is taken as the processor's own output.
    """

    source: Any


@dataclass(frozen=True)
class Video:
    """A video in a message: the path of a file or of a folder of frames, or frames. Decoded by the processor."""

    source: Any


Part = Text | Image | Video


@dataclass(frozen=True, init=False)
class Message:
    """One turn of a conversation; ``parts`` keeps text and media in reading order.

    Example:
        ``Message("user", "Hello")``, ``Message("user", [Image("cat.jpg"), "What is this?"])``
    """

    role: Role
    parts: tuple[Part, ...]

    def __init__(self, role: Role, parts: str | Part | Sequence[str | Part]) -> None:
        """Strings in ``parts`` become ``Text``.

        Raises PromptError: an unknown role, a part that is none of these, or a medium that is not the user's.
        """
        if role not in ROLES:
            raise PromptError(f"message: role is {role!r}, expected {' or '.join(ROLES)}")
        items = [parts] if isinstance(parts, str | Text | Image | Video) else parts
        if not isinstance(items, Sequence):
            items = [items]
        for item in items:
            held = item.text if isinstance(item, Text) else item
            if not isinstance(held, str | Image | Video):
                raise PromptError(
                    f"message: found a {type(held).__name__}, expected text, vlm.Image or vlm.Video",
                    fix="e.g. vlm.Message('user', [vlm.Image('cat.jpg'), 'What is this?'])",
                )
            if role != "user" and isinstance(held, Image | Video):
                raise PromptError(
                    f"message: an image or video in the {role}'s message; models read them in questions only",
                    fix="put it into a message of the user",
                )
        object.__setattr__(self, "role", role)
        object.__setattr__(self, "parts", tuple(Text(i) if isinstance(i, str) else i for i in items))

    @property
    def text(self) -> str:
        """The text parts joined without separator, an :class:`Input` on a line of its own."""
        text = ""
        for part in self.parts:
            if isinstance(part, Text):
                text += ("\n" if isinstance(part, Input) and text else "") + part.text
        return text

    @property
    def media(self) -> tuple[Image | Video, ...]:
        """The images and videos, in order."""
        return tuple(p for p in self.parts if not isinstance(p, Text))


@dataclass(frozen=True)
class Sample:
    """What a dataset yields: a conversation, with where it came from. Knows nothing of models."""

    messages: tuple[Message, ...]
    id: str = ""
    source: str = ""
    only_last: bool = False  # its last answer alone is trained; the earlier ones are what that answer goes on from


@dataclass(frozen=True)
class Cut:
    """What a limit took from a sample: counts of parts that are shorter or gone, and the option that is the limit."""

    answers: int = 0  # that lost their end
    turns: int = 0  # answers that are gone whole
    images: int = 0  # and videos
    questions: int = 0  # questions, prompts and system texts that are shorter or gone
    limit: str = ""

    def __str__(self) -> str:
        words = ("answers shortened", "answers lost", "images lost", "questions shortened or lost")
        counts = zip((self.answers, self.turns, self.images, self.questions), words, strict=True)
        lost = ", ".join(f"{n} {what}" for n, what in counts if n)
        return f"{lost} ({self.limit})" if self.limit else lost


@dataclass(frozen=True)
class Prepared:
    """An image after its recipe, where the pixels alone do not say all: tiles of one image, or any height and width.

    A recipe that is given one returns it unchanged.
    """

    pixels: torch.Tensor  # ``[f, 3, h, w]``: the tiles of one image are its frames
    size: tuple[int, int] | None  # height and width of the image before the recipe, where they matter
    stored: StoredMedium | None = None  # with its features ``pixels`` hold no data (device "meta"), only their shape


@dataclass(frozen=True)
class Split:
    """An image that a recipe divides into several media with text of its own between them, in order.

    Special tokens in its texts are read as such. A recipe that is given one returns it unchanged.
    """

    pieces: tuple[str | Prepared, ...]


@dataclass(frozen=True)
class StoredMedium:
    """A medium in a feature cache (:mod:`vlm.processors.features`): its key, and its features if they are there."""

    key: bytes  # of 24 bytes
    recipe: bytes  # of 8 bytes, which recipe made its pixels
    features: Features | None = None  # of this medium alone after the first parts, ``[1, f, v, d]``; None: not there
    dtype: torch.dtype | None = None  # in which they were computed, which may not be that in which they are stored
    size: tuple[int, int] | None = None  # see :class:`Prepared`
    decoded: int = 0  # pixels that were decoded for it
    layout: tuple[bytes, bytes] | None = None  # key and text of a further entry: how an image was split into media
    damaged: bool = False  # the entry is there and cannot be used


@dataclass
class Example:
    """What the processor makes of a sample.

    ``ids`` and ``labels`` are ``[s]`` lists; each medium is ONE ``MEDIA_TOKEN`` in ``ids`` (label
    ``IGNORE_INDEX``), in the order of ``media``, whose tensors are ``[f, 3, h, w]``. ``cut`` says what a limit took.
    ``sizes``, ``texts`` and ``stored`` are empty or as long as ``media``: height and width of an image before its
    recipe, where that is known; the question about it in the tokens of a bridge that reads it; its place in a cache.
    """

    ids: list[int]
    labels: list[int]
    media: list[torch.Tensor] = field(default_factory=list)
    id: str = ""
    source: str = ""
    cut: Cut | None = None
    sizes: list[tuple[int, int] | None] = field(default_factory=list)
    texts: list[list[int]] = field(default_factory=list)
    stored: list[StoredMedium | None] = field(default_factory=list)

    @property
    def num_targets(self) -> int:
        """Number of supervised positions."""
        return sum(label != IGNORE_INDEX for label in self.labels)


@dataclass
class MediaFacts:
    """What parts may need to know of the media besides their pixels; None: nothing to know.

    shapes  ``[n, 2]`` int64, real height and width of the pixels where they differ (the rest of ``pixels`` is zero)
    sizes   ``[n, 2]`` int64, height and width of the images before the recipe; 0 where that is not known
    texts   ``[n, t]`` int64, the question in the tokens of a bridge that reads it, ``PADDING`` after its end
    """

    shapes: torch.Tensor | None = None
    sizes: torch.Tensor | None = None
    texts: torch.Tensor | None = None

    def map(self, fn: Any) -> MediaFacts:
        """``fn`` of every tensor."""
        return MediaFacts(**{k: None if v is None else fn(v) for k, v in vars(self).items()})

    def select(self, index: Any) -> MediaFacts:
        """The facts of some of the media."""
        return self.map(lambda t: t[index])


@dataclass
class StoredGroup:
    """Features of some media of a batch, read from a cache: ``places [k]`` in the batch, tokens ``[k, f, v, d]``."""

    places: list[int]
    features: Features
    dtype: torch.dtype  # in which the model computes them

    def map(self, fn: Any) -> StoredGroup:
        """``fn`` of the tensors that are computed with."""
        value, mask = self.features, self.features.mask
        moved = dataclasses.replace(value, tokens=fn(value.tokens), mask=None if mask is None else fn(mask))
        return dataclasses.replace(self, features=moved)


@dataclass
class StoredMedia:
    """The media of a batch in a feature cache. Those in none of the ``groups`` are in ``Batch.pixels``, in order."""

    media: list[StoredMedium | None]  # one per medium, without features; None: what no cache keeps
    shapes: list[tuple[int, int, int]]  # frames, height and width of the pixels of each
    groups: list[StoredGroup]

    @property
    def hits(self) -> int:
        """Number of media whose features were read."""
        return sum(len(group.places) for group in self.groups)


PADDING = -1
"""Id after the end of a shorter text in ``MediaFacts.texts``."""


@dataclass
class Batch:
    """What a model takes.

    ids         ``[b, s]`` int64, ``MEDIA_TOKEN`` at each medium, any id at padding
    labels      ``[b, s]`` int64, ``IGNORE_INDEX`` where nothing is trained
    segments    ``[b, s]`` int64, 0 at padding, 1.. numbers the samples of a row (all 1 when unpacked).
                Attention never crosses a segment border and positions restart there.
    pixels      ``[n, f, 3, h, w]`` float, or None for a text-only batch; with ``stored`` only some of the media
    media_row   ``[n]`` row of each medium; media are ordered by (row, position)
    media_pos   ``[n]`` index in ``ids`` of each medium's ``MEDIA_TOKEN``
    frames      ``[n]`` int64, real frames of each medium where they differ (the rest of ``pixels`` is zero), else None
    group       the group of datasets it was drawn from, with ``mixing: joint``
    about       what else is known of the media, or None
    seed        of the random choices (dropout) of a training step on it; None: the process's random state goes on
    sample_keys references of the samples in the order of sample_ids: number of the source, pass, index
    stored      with a feature cache: what is known of the media, see :class:`StoredMedia`
    sample_ids  names of the samples, for messages
    """

    ids: torch.Tensor
    labels: torch.Tensor
    segments: torch.Tensor
    pixels: torch.Tensor | None
    media_row: torch.Tensor
    media_pos: torch.Tensor
    frames: torch.Tensor | None = None
    group: str = ""
    about: MediaFacts | None = None
    seed: int | None = None
    sample_keys: list[tuple[int, int, int]] = field(default_factory=list)
    stored: StoredMedia | None = None
    sample_ids: list[str] = field(default_factory=list)

    @property
    def has_media(self) -> bool:
        """Whether there is an image or video in it."""
        return self.stored is not None or (self.pixels is not None and len(self.pixels) > 0)

    @property
    def num_targets(self) -> int:
        """Number of supervised positions in the batch."""
        return int((self.labels != IGNORE_INDEX).sum())

    @property
    def num_samples(self) -> int:
        """Number of samples (rows, or segments when packed)."""
        return int(self.segments.max(dim=1).values.sum())

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """A copy on ``device``."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """A copy in pinned host memory (called by torch's DataLoader)."""
        return self._map(lambda t: t.pin_memory())

    def _map(self, fn: Any) -> Batch:
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        moved = {k: fn(v) if hasattr(v, "device") else v for k, v in values.items()}
        if self.stored is not None:
            groups = [group.map(fn) for group in self.stored.groups]
            moved["stored"] = dataclasses.replace(self.stored, groups=groups)
        return Batch(**moved | {"about": self.about and self.about.map(fn)})


@dataclass
class Features:
    """Visual tokens.

    tokens  ``[n, f, v, d]``
    mask    ``[n, f, v]`` bool (True = real) or None for all real
    grid    ``[n, 2]`` int64 on the CPU, rows and columns in which a frame's tokens lie (row by row); None: in a square,
            or in no grid
    about   what else is known of the media; the model adds it after each part
    """

    tokens: torch.Tensor
    mask: torch.Tensor | None = None
    grid: torch.Tensor | None = None
    about: MediaFacts | None = None

    def select(self, index: Any) -> Features:
        """The features of some of the media."""
        about = self.about and self.about.select(index)
        mask, grid = (None if t is None else t[index] for t in (self.mask, self.grid))
        return Features(self.tokens[index], mask, grid, about)


@dataclass(frozen=True)
class MediumShape:
    """A medium before it is encoded, or between two parts: enough to count the positions that it will take.

    Height and width are those of its pixels (0: as the encoder wants them), ``size`` those of the image before the
    recipe, ``tokens`` are those of a frame (0 before the encoder), ``grid`` their rows and columns.
    """

    frames: int = 1
    height: int = 0
    width: int = 0
    size: tuple[int, int] | None = None
    tokens: int = 0
    grid: tuple[int, int] | None = None


@dataclass
class Output:
    """Loss as (sum, count), so that means over accumulation and ranks are exact; logits on request."""

    loss_sum: torch.Tensor  # scalar, sum of the token losses in float32
    num_tokens: int  # number of summands
    logits: torch.Tensor | None = None  # ``[b, L, vocab]`` of the fused sequence, only when asked for
    labels: torch.Tensor | None = None  # ``[b, L]`` of the fused sequence, only when logits were asked for
