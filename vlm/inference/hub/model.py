"""A composition as a model of transformers: what the modelling file of an exported folder imports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from vlm.common.errors import PromptError, UserError
from vlm.common.types import IGNORE_INDEX, MEDIA_TOKEN, PADDING, Batch, Example
from vlm.inference.decoding import Prompt, decode
from vlm.inference.engine import Engine
from vlm.inference.generation import Generation
from vlm.processors.collate import VisualTokens, collate

OPTIONS = {
    "max_new_tokens": int,
    "num_beams": int,
    "do_sample": bool,
    "temperature": float,
    "top_p": float,
    "top_k": int,
    "repetition_penalty": float,
    "no_repeat_ngram_size": int,
    "length_penalty": float,
    "use_cache": bool,
}
"""Options of ``generate`` that are ours too."""
FACTS = ("frames", "media_shapes", "media_sizes", "media_texts")
"""What a processor returns besides pixels, where it differs between media: ``Batch.frames`` and ``MediaFacts``."""
MEDIA = ("media", "sizes", "texts")
"""Fields of an example that are as long as its media."""
FROM_PRETRAINED = ("revision", "cache_dir", "token", "local_files_only", "force_download", "proxies")
"""Arguments of ``from_pretrained`` that say where a folder comes from."""


class ComposedConfig(PreTrainedConfig):
    """The LLM's configuration, the id of an image in a prompt, and how many positions it takes."""

    model_type = "vlm_composed"
    sub_configs = {"text_config": AutoConfig}

    def __init__(
        self, text_config: Any = None, image_token_id: int = 0, image_token_count: int = 0, **kwargs: Any
    ) -> None:
        if isinstance(text_config, dict):
            text_config = AutoConfig.for_model(**text_config)
        self.text_config = text_config
        self.image_token_id = image_token_id
        self.image_token_count = image_token_count
        super().__init__(**kwargs)


class ComposedForConditionalGeneration(PreTrainedModel, GenerationMixin):
    """The composition ``vlm`` with the interface of transformers. State-dict keys: ``vlm.*``, then our own names."""

    config_class = ComposedConfig
    config: Any
    main_input_name = "input_ids"
    _supports_sdpa = True

    def __init__(self, config: ComposedConfig, engine: Engine) -> None:
        super().__init__(config)
        self.vlm = engine.model
        self._engine = engine

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls, pretrained_model_name_or_path: str | Path, *args: Any, config: Any = None, **kwargs: Any
    ) -> Any:
        """The model of a folder, or of a repository on the Hub.

        Args:
            pretrained_model_name_or_path: what ``weights export`` wrote.
            args: not used.
            config: a configuration that was read before.
            kwargs: ``dtype`` of the weights, ``device_map`` with one device, and where the folder comes from.

        Raises:
            UserError: files of the folder are missing or damaged, or ``device_map`` names several devices.
        """
        folder = fetched(pretrained_model_name_or_path, kwargs)
        config = config or ComposedConfig.from_pretrained(folder)
        dtype = kwargs.get("dtype", kwargs.get("torch_dtype")) or "auto"
        dtype = config.dtype if isinstance(dtype, str) and dtype == "auto" else dtype
        if isinstance(dtype, str):
            dtype = getattr(torch, dtype)
        engine = Engine.load(folder, device=one_device(kwargs.get("device_map")), dtype=dtype)
        model = cls(config, engine)
        if (folder / "generation_config.json").is_file():
            model.generation_config = GenerationConfig.from_pretrained(folder)
        model.eval()
        if kwargs.get("output_loading_info"):
            return model, {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set(), "error_msgs": []}
        return model

    def get_input_embeddings(self) -> Any:
        """The LLM's."""
        return self.vlm.llm.model.get_input_embeddings()

    def get_output_embeddings(self) -> Any:
        """The LLM's."""
        return self.vlm.llm.model.get_output_embeddings()

    def forward(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **facts: Any,
    ) -> CausalLMOutputWithPast:
        """Logits ``[b, s, vocab]`` at the positions of ``input_ids``, and with ``labels`` the mean loss.

        Args:
            input_ids: ``[b, s]`` with the image token once for each position of a medium.
            pixel_values: ``[n, 3, h, w]`` or ``[n, f, 3, h, w]``, media in reading order.
            attention_mask: ``[b, s]``, 0 at padding on either side.
            labels: ``[b, s]``, -100 where nothing is trained.
            facts: what else the processor returned: ``frames``, ``media_shapes``, ``media_sizes``, ``media_texts``.

        Raises:
            PromptError: image tokens and media differ.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        batch = self.batch(input_ids, mask, media_of(pixel_values, facts), labels)
        output = self.vlm(batch, return_logits=True)
        assert output.logits is not None
        logits = output.logits.new_zeros(*input_ids.shape, output.logits.shape[-1])
        for row, real in enumerate(mask.bool()):
            logits[row, real] = output.logits[row, : int(real.sum())]
        loss = None if labels is None else output.loss_sum / max(1, output.num_tokens)
        return CausalLMOutputWithPast(loss=loss, logits=logits)  # type: ignore[arg-type]

    def batch(
        self,
        input_ids: Tensor,
        mask: Tensor,
        media: Example,
        labels: Tensor | None = None,
    ) -> Batch:
        """Our batch of what :meth:`forward` takes; each medium is one placeholder."""
        counts = VisualTokens.of(self.vlm.visual_tokens, self.vlm.counters()).of_media(media)
        examples: list[Example] = []
        at = 0
        for row, real in enumerate(mask.bool()):
            ids = input_ids[row, real].tolist()
            wanted = [IGNORE_INDEX] * len(ids) if labels is None else labels[row, real].tolist()
            example, used = self._example(ids, wanted, counts[at:])
            for name in MEDIA:
                setattr(example, name, getattr(media, name)[at : at + used])
            at += used
            examples.append(example)
        if at < len(counts):
            raise PromptError(f"{len(counts)} images or videos, but the prompts hold {at}")
        return collate(examples, self._engine.processor.pad_id).to(input_ids.device)

    def _example(self, ids: list[int], labels: list[int], counts: list[int]) -> tuple[Example, int]:
        """A row with one placeholder for each medium, and how many of the next media (their positions) it holds."""
        image, count = self.config.image_token_id, 0
        kept, wanted = list[int](), list[int]()
        at = 0
        while at < len(ids):
            taken = 1
            if ids[at] == image:
                taken = counts[count] if count < len(counts) else 0
                if not taken or ids[at : at + taken] != [image] * taken:
                    found = sum(i == image for i in ids)
                    raise PromptError(
                        f"a prompt has {found} image tokens, which does not fit its {len(counts)} images",
                        fix="let the processor write the prompt: it repeats the image token for each position",
                    )
                count += 1
            kept.append(MEDIA_TOKEN if ids[at] == image else ids[at])
            wanted.append(IGNORE_INDEX if ids[at] == image else labels[at])
            at += taken
        return Example(kept, wanted), count

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        generation_config: Any = None,
        **kwargs: Any,
    ) -> Tensor:
        """Prompts and answers ``[b, s + t]``, padded on the right with the pad id.

        Args:
            input_ids: see :meth:`forward`, as ``pixel_values`` and ``attention_mask``.
            pixel_values: media.
            attention_mask: padding.
            generation_config: in place of the folder's.
            kwargs: facts of the media, and options of an answer (``max_new_tokens``, ``do_sample``, ...), which take
                precedence.

        Raises:
            UserError: an option that this model does not have.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        media = media_of(pixel_values, {name: kwargs.pop(name, None) for name in FACTS})
        generation = options_of(generation_config or self.generation_config, kwargs)
        prompt = Prompt.of(self.vlm.prepare(self.batch(input_ids, mask, media)))
        limited, ends = self._engine.limits(generation, prompt)
        rows = decode(self.vlm.llm.model, prompt, limited, ends, self.vlm.compute_dtype)
        size = max(map(len, rows), default=0)
        answers = torch.full((len(rows), size), ends.pad, dtype=input_ids.dtype, device=input_ids.device)
        for row, ids in enumerate(rows):
            answers[row, : len(ids)] = torch.tensor(ids)
        return torch.cat([input_ids, answers], dim=1)


def media_of(pixel_values: Tensor | None, facts: dict[str, Any]) -> Example:
    """The media of a batch, with what is known of them, as those of one example."""
    if pixel_values is None:
        return Example([], [])
    pixels = (pixel_values if pixel_values.dim() == 5 else pixel_values[:, None]).float().cpu()
    frames, shapes, sizes, texts = ([None] * len(pixels) if facts.get(n) is None else facts[n].tolist() for n in FACTS)
    media = [
        medium[:count, :, : shape and shape[0], : shape and shape[1]]
        for medium, count, shape in zip(pixels, frames, shapes, strict=True)
    ]
    known = [None if size is None or not any(size) else (size[0], size[1]) for size in sizes]
    words = [[i for i in text if i != PADDING] for text in texts if text is not None]
    return Example([], [], media, sizes=known if facts.get("media_sizes") is not None else [], texts=words)


def options_of(config: Any, changes: dict[str, Any]) -> Generation:
    """Our options of an answer. Raises UserError: an unknown one that is not None."""
    unknown = [name for name, value in changes.items() if name not in OPTIONS and value is not None]
    if unknown:
        raise UserError(f"generate: {unknown[0]} is not an option of this model (known: {', '.join(OPTIONS)})")
    stored = {} if config is None else config.to_dict()
    values = {name: stored[name] for name in OPTIONS if stored.get(name) is not None}
    values |= {name: value for name, value in changes.items() if value is not None}
    plain: dict[str, Any] = {"do_sample": False, "repetition_penalty": 1.0, "max_new_tokens": 20}
    typed = {name: OPTIONS[name](value) for name, value in (plain | values).items()}
    return Generation(stop=(), **typed)


def one_device(device_map: Any) -> Any:
    """The device of a ``device_map``. Raises UserError: it names several."""
    if isinstance(device_map, dict):
        devices = set(device_map.values())
        if len(devices) != 1:
            raise UserError(f"device_map: {len(devices)} devices, this model runs on one", fix='device_map="auto"')
        device_map = devices.pop()
    if isinstance(device_map, int):
        device_map = torch.device(device_map)
    return "cpu" if device_map is None else device_map


def fetched(name: str | Path, options: dict[str, Any]) -> Path:
    """The local folder, or the snapshot of a repository on the Hub."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import snapshot_download

    known = {key: options[key] for key in FROM_PRETRAINED if options.get(key) is not None and key != "proxies"}
    return Path(snapshot_download(str(name), **known))
