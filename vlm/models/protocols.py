"""The contracts between the parts of a model.

Every part is a class with a nested dataclass ``Config``, its only list of options, and a constructor that takes it.
No base class is needed (but :class:`~vlm.models.inserts.base.Insert` attaches an insert for you). The small
protocols at the end are optional: a part without that attribute behaves as their docstrings say.

Shapes: b rows, s positions of the text, L positions of the fused sequence, n media, f frames of a medium, v visual
tokens of a frame, d width, T real tokens of a packed batch, t positions in use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor, nn

    from vlm.common.types import Batch, Features, MediumShape
    from vlm.models.bridges.question import QuestionOptions
    from vlm.models.fusion.base import LLMInputs
    from vlm.models.inserts.base import InsertData


@runtime_checkable
class VisionEncoder(Protocol):
    """Pixels to visual tokens: an ``nn.Module`` constructed with ``(config)``.

    It starts with random weights; files are read by ``vlm.checkpoint`` alone. State-dict keys are those of the file
    format that it reads, below ``vision.``.

    Attributes:
        config: its ``Config``.
        out_dim: width d of its tokens.
        image_size: side of the square image in pixels (of an encoder of any size: of a typical image).
        num_tokens: tokens v of a frame of that size, class token included where it is kept.
    """

    config: Any
    out_dim: int
    image_size: int
    num_tokens: int

    def forward(self, pixels: Tensor) -> Features:
        """``[n, f, 3, image_size, image_size]`` -> tokens ``[n, f, v, d]``, each frame on its own.

        The media of a call have the same number of frames, height and width. ``grid`` of the result says how the
        tokens lie where that is not a square.

        Raises:
            ConfigError: pixels of another size.
        """


@runtime_checkable
class Bridge(Protocol):
    """Visual tokens to visual tokens: an ``nn.Module`` constructed with ``(config, in_dim, llm_dim)``.

    Bridges form a chain; where the fusion splices, the last one ends at the LLM's width.

    Attributes:
        out_dim: width of the tokens that leave.
    """

    out_dim: int

    def num_tokens(self, in_tokens: int) -> int:
        """Tokens of a frame that leave, of ``in_tokens`` that enter.

        Raises:
            ConfigError: the bridge cannot work on that number.
        """

    def forward(self, features: Features) -> Features:
        """Tokens ``[n, f, v, in_dim]`` -> ``[n, f, num_tokens(v), out_dim]`` (``[n, 1, ...]``: :class:`JoinsFrames`).

        ``features.mask`` ``[n, f, v]`` is False at padding; pass it on if tokens keep their places, and ``grid`` with
        it (``dataclasses.replace(features, tokens=...)``). ``features.about`` has the sizes of the images.
        """


class Fusion(Protocol):
    """Text and visual tokens to one sequence: constructed with ``(config, llm)``; no parameters of its own."""

    def __call__(self, batch: Batch, visual: Features | None) -> LLMInputs:
        """Ids ``[b, s]`` and tokens ``[n, f, v, d]`` -> embeddings ``[b, L, d]`` with segments, positions, labels.

        ``LLMInputs.blocks`` says which tokens see one another in both directions (None: every token sees the past).

        Raises:
            PromptError: the number of placeholders and of media differ; it names the sample and both counts.
        """


@runtime_checkable
class LanguageModel(Protocol):
    """A decoder: an ``nn.Module`` constructed with ``(config)``.

    Attributes:
        model: the transformers model, which generation calls with embeddings; its keys follow ``llm.model.``.
        hidden_size: width d.
        vocab_size: rows of the embeddings and of the head.
        banned_ids: ids that are never generated, such as rows of the head that no file holds.
    """

    model: Any
    hidden_size: int
    vocab_size: int
    banned_ids: tuple[int, ...]

    def layers(self) -> nn.ModuleList:
        """The decoder layers, for inserts and recomputation."""

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings ``[..., d]`` of ``ids [...]``."""

    def forward(self, inputs: LLMInputs, keep: Tensor | None = None) -> Tensor:
        """Hidden states after the final norm: ``[b, L, d]``, or ``[t, d]`` where ``keep [b, L]`` is True.

        Samples of a row never see one another; within a sample a token sees what comes before it and, with
        ``inputs.blocks``, the tokens of its own block (:meth:`LLMInputs.visible`). ``inputs.position_ids`` are
        ``[b, L]``, or ``[b, L, axes]`` for rotary positions of several axes.

        Raises:
            ConfigError: blocks or axes that this decoder cannot honour.
        """

    def head(self, hidden: Tensor) -> Tensor:
        """Logits ``[..., vocab_size]`` of ``hidden [..., d]``."""

    def loss(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Summed float32 cross entropy of ``hidden [t, d]`` against ids ``targets [t]``."""


@runtime_checkable
class LayerInsert(Protocol):
    """Modules at decoder layers of an LLM: constructed with ``(config, llm_dim, num_layers, visual_dim)``.

    Derive from :class:`~vlm.models.inserts.base.Insert`. Nothing of a call may be stored on the module: several calls
    can run at a time. The LLM's state-dict keys never change.

    Attributes:
        layers: number of a decoder layer (as text) -> the module there; keys ``inserts.<i>.layers.<number>.*``.
        needs_data: whether it reads ``InsertData``; a call without media then leaves its parameters untouched.
        reads: names in ``InsertData.tokens`` that the fusion must provide (:class:`ProvidesData`).
    """

    layers: nn.ModuleDict
    needs_data: ClassVar[bool]
    reads: ClassVar[tuple[str, ...]]

    def before(self, module: Any, hidden: Tensor, data: InsertData | None) -> Tensor:
        """What the decoder layer gets instead of its input ``[b, L, d]`` (packed: ``[1, T, d]``)."""

    def after(self, module: Any, hidden: Tensor, data: InsertData | None) -> Tensor:
        """What replaces the output ``[b, L, d]`` (packed: ``[1, T, d]``) of the decoder layer."""

    def attach(self, llm: Any) -> None:
        """Start working at the layers of ``llm``, after the inserts attached earlier."""


@runtime_checkable
class JoinsFrames(Protocol):
    """A bridge that says whether a video leaves as one frame; without it frames stay apart."""

    joins_frames: bool


@runtime_checkable
class LinearAtFirst(Protocol):
    """A bridge that one linear layer decides before it is trained, so that it can be solved for; without it: none."""

    def first_layer(self) -> nn.Linear | None:
        """That layer; None: not with these options."""

    def entered(self, features: Features) -> Tensor:
        """What the layer reads ``[n, f, v, in_features]``."""


@runtime_checkable
class NamesWords(Protocol):
    """A bridge whose first layer chooses among words, which can be given embeddings; without it: it has no words."""

    config: Any

    def name_words(self, embeddings: Tensor) -> None:
        """The embeddings ``[n, config.tokens_per_word, out_dim]`` of the first n words."""


@runtime_checkable
class CountsTokens(Protocol):
    """A vision encoder or bridge whose number of tokens is known from the shape of a medium, without encoding it.

    Parts of a chain in which some part ``varies`` must have it; see :mod:`vlm.models.counting` for usual rules.

    Attributes:
        varies: whether the number depends on the image, and not on the number of frames alone.
    """

    varies: bool

    def counter(self) -> Callable[[MediumShape], MediumShape]:
        """From the shape that enters to the one that leaves; it pickles, and does not hold the part."""


@runtime_checkable
class LimitsWidth(Protocol):
    """A fusion that says whether visual tokens must have the LLM's width (and take its positions); without it: yes."""

    needs_llm_width: ClassVar[bool]


def needs_llm_width(fusion: Any) -> bool:
    """What a fusion, or its class, says as :class:`LimitsWidth`."""
    return not isinstance(fusion, LimitsWidth) or fusion.needs_llm_width


@runtime_checkable
class RotatesAxes(Protocol):
    """An LLM that says how many axes its positions have: 3 for time, row and column; without it: 1."""

    position_axes: int


@runtime_checkable
class OpensBlocks(Protocol):
    """An LLM that says whether it honours ``LLMInputs.blocks``; without it, its forward pass says so."""

    model: Any
    opens_blocks: bool


@runtime_checkable
class ProvidesData(Protocol):
    """A fusion that names what it puts into ``InsertData.tokens``; without it: nothing."""

    provides: ClassVar[tuple[str, ...]]


@runtime_checkable
class JoinsData(Protocol):
    """A fusion whose ``InsertData`` of several calls can become that of one; without it they run one at a time."""

    def join_data(self, parts: Sequence[InsertData]) -> InsertData:
        """The data of one row ``[1, sum t_i]`` with the positions of ``parts``, each ``[1, t_i]``, one after another.

        What a position of the joined row sees is what it saw in its own part.
        """


@runtime_checkable
class ReadsText(Protocol):
    """Options (``Config``) of a bridge that may read the question about a medium; ``reads_text`` None: it does not.

    The processor puts the question's ids, in the tokens of the bridge, into ``Example.texts``; ``forward`` finds them
    in ``features.about.texts``.
    """

    reads_text: QuestionOptions | None


@runtime_checkable
class WritesOut(Protocol):
    """A part that reads a folder's configuration and can do without; without it the part's options are kept."""

    def written_out(self) -> Any:
        """Its ``Config`` with what that folder says among the options, so that it builds the same without it."""


@runtime_checkable
class NamesLayers(Protocol):
    """A module that names its layers for activation checkpointing; without it lists of equal modules are taken."""

    def checkpointable_modules(self) -> list[nn.Module]:
        """The layers to recompute in the backward pass."""


@runtime_checkable
class FitsFiles(Protocol):
    """A part that differs from its published files; without it everything of a file has a place, in its shape.

    Attributes:
        unbuilt: names below the part of what is not built, such as those of later blocks.
    """

    unbuilt: frozenset[str]

    def fitted(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Tensors by name below the part, those that depend on the image size in the shapes of this one."""
