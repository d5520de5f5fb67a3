"""The plug-in of vLLM: what can be tested without vLLM, whose interfaces are stubs here."""

from __future__ import annotations

import contextlib
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import tomllib
import torch
from torch import nn

from tests.golden.installed import blip2
from vlm.common.errors import UserError
from vlm.common.types import Image, Message
from vlm.inference.hub.export import HubExport
from vlm.inference.hub.model import ComposedConfig
from vlm.inference.hub.vllm import VllmExport
from vlm.inference.load import load_parts
from vlm.models.inserts.adapter import Adapter
from vlm.testing import part

from .making import llava, saved


class Mapper:
    def __init__(self, orig_to_new_prefix: dict[str, str]) -> None:
        self.prefixes = orig_to_new_prefix

    def name(self, key: str) -> str:
        return next((new + key.removeprefix(old) for old, new in self.prefixes.items() if key.startswith(old)), key)


class Loader:
    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def load_weights(self, weights: Any, mapper: Mapper) -> set[str]:
        have, done = dict(self.module.named_parameters()), set()
        for key, tensor in weights:
            if (name := mapper.name(key)) in have:
                have[name].data.copy_(tensor)
                done.add(name)
        return done


class MultiModal:
    def configure_mm_token_handling(self, vocab_size: int, mm_token_ids: list[int]) -> None:
        self.oov = max(mm_token_ids) >= vocab_size

    def _mark_tower_model(self, *_: Any) -> Any:
        return contextlib.nullcontext()

    _mark_language_model = _mark_tower_model


class Takes:
    def __init__(self, *_: Any, **options: Any) -> None:
        self.__dict__.update(options)


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Modules with the names that the plug-in imports; what is registered is returned."""
    registered: dict[str, Any] = {}

    def inner(vllm_config: Any, hf_config: Any, prefix: str) -> nn.Module:
        model = nn.Module()
        model.lm_head = nn.Linear(hf_config.hidden_size, hf_config.vocab_size, bias=False)
        model.make_empty_intermediate_tensors = None  # type: ignore[assignment]
        return model

    registry = types.SimpleNamespace(
        get_supported_archs=lambda: list(registered), register_model=lambda name, at: registered.setdefault(name, at)
    )
    multimodal = types.SimpleNamespace(register_processor=lambda *_, **__: lambda cls: cls)
    contents: dict[str, dict[str, Any]] = {
        "vllm": {"ModelRegistry": registry},
        "vllm.model_executor": {},
        "vllm.model_executor.models": {},
        "vllm.model_executor.models.interfaces": {"SupportsMultiModal": MultiModal, "SupportsPP": object},
        "vllm.model_executor.models.utils": {
            "AutoWeightsLoader": Loader,
            "WeightsMapper": Mapper,
            "init_vllm_registered_model": inner,
            "maybe_prefix": lambda prefix, name: f"{prefix}.{name}" if prefix else name,
        },
        "vllm.multimodal": {"MULTIMODAL_REGISTRY": multimodal},
        "vllm.multimodal.inputs": {"MultiModalFieldConfig": types.SimpleNamespace(batched=lambda name: name)},
        "vllm.multimodal.processing": {
            name: type(name, (Takes,), {})
            for name in ("BaseDummyInputsBuilder", "BaseMultiModalProcessor", "BaseProcessingInfo", "PromptReplacement")
        },
    }
    for name, values in contents.items():
        module = types.ModuleType(name)
        vars(module).update(values)
        monkeypatch.setitem(sys.modules, name, module)
    return registered


def test_the_plug_in(tmp_path: Path, vllm: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = saved(tmp_path / "run", text={"tokenizer": str(llava(tmp_path / "x").model.text.config.tokenizer)})
    folder = tmp_path / "out"
    lines = VllmExport(VllmExport.Config(dtype="fp32")).write(cfg, folder)
    assert any("Blip2ForConditionalGeneration: vllm computes it otherwise: it puts the rows" in line for line in lines)
    project = tomllib.loads((folder / "vllm_plugin" / "pyproject.toml").read_text())
    target = project["project"]["entry-points"]["vllm.general_plugins"]["vlm_compose"]
    monkeypatch.syspath_prepend(str(folder / "vllm_plugin"))
    package = __import__(target.partition(":")[0])
    getattr(package, target.partition(":")[2])()
    module, _, name = vllm["ComposedForConditionalGeneration"].partition(":")
    plugin: Any = __import__(module, fromlist=[name])
    config = ComposedConfig.from_pretrained(folder)
    settings = types.SimpleNamespace(model_config=types.SimpleNamespace(hf_config=config, model=str(folder)))
    model = getattr(plugin, name)(vllm_config=settings)
    assert model.oov and model.get_placeholder_str("image", 0) == "<image>"
    whole, processor, _, _ = load_parts(cfg, "cpu", torch.float32)
    filled = model.load_weights((n, t) for n, t in whole.state_dict().items())
    assert filled == {n for n, _ in model.named_parameters()}
    pixels = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        rows = model.embed_multimodal(pixel_values=pixels)
        expected = whole.encode(pixels[:, None]).tokens[:, 0]
    torch.testing.assert_close(torch.stack(rows), expected)
    assert model.embed_multimodal() == []
    context = types.SimpleNamespace(model_config=settings.model_config, get_hf_config=lambda _: config)
    inputs = plugin.ComposedInputs(info=plugin.ComposedInfo())
    inputs.info.ctx = context
    (update,) = inputs._get_prompt_updates(None, {}, None)
    assert update.target == [config.image_token_id] and len(update.replacement) == whole.visual_tokens()
    image = Image(torch.zeros(3, 28, 28))
    prompt = processor.encode_chat([Message("user", [image, "What?"])])
    assert torch.equal(inputs._call_hf_processor({"images": [image.source]}, {})["pixel_values"], prompt.media[0])
    for known in [m for m in sys.modules if m.partition(".")[0] == "vlm_vllm"]:
        del sys.modules[known]


def test_a_class_of_vllm_needs_no_plug_in(tmp_path: Path) -> None:
    VllmExport().write(llava(tmp_path / "run"), tmp_path / "out")
    assert not (tmp_path / "out" / "vllm_plugin").exists()
    VllmExport().write(llava(tmp_path / "one", depth=1), tmp_path / "composed")
    assert (tmp_path / "composed" / "vllm_plugin" / "vlm_vllm" / "model.py").is_file()


def test_what_vllm_cannot_run(tmp_path: Path) -> None:
    llm = llava(tmp_path / "x").model
    cfg = saved(
        tmp_path / "run", vision=llm.vision, bridge=llm.bridge, inserts=[part("adapter", Adapter.Config())], llm=llm.llm
    )
    with pytest.raises(UserError, match="vllm cannot run the composition: inserts \\(adapter\\) work between"):
        VllmExport().write(cfg, tmp_path / "out")
    blip2.build_instruct(tmp_path / "asks")
    with pytest.raises(UserError, match="vllm cannot run the composition: a bridge reads the question"):
        VllmExport().write(tmp_path / "asks", tmp_path / "out")
    HubExport().write(cfg, tmp_path / "out")


def test_the_plug_in_builds_as_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zipfile

    from setuptools import build_meta

    VllmExport().write(llava(tmp_path / "run", depth=1), tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out" / "vllm_plugin")
    monkeypatch.setattr(sys, "argv", ["setup.py"])
    name = build_meta.build_wheel(str(tmp_path))
    with zipfile.ZipFile(tmp_path / name) as wheel:
        files = wheel.namelist()
        points = next(f for f in files if f.endswith("entry_points.txt"))
        assert "vlm_compose = vlm_vllm:register" in wheel.read(points).decode()
    assert {"vlm_vllm/__init__.py", "vlm_vllm/model.py"} <= set(files)
