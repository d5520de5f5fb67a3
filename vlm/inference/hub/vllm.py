"""``vlm weights export RUN --to vllm OUT``: the folder for transformers, and a plug-in where vLLM lacks the class."""

from __future__ import annotations

from pathlib import Path

from vlm.common import VERSION
from vlm.common.errors import WeightsError
from vlm.common.registry import register_export
from vlm.inference.hub.composed import questions
from vlm.inference.hub.contents import Contents
from vlm.inference.hub.export import HubExport
from vlm.inference.hub.forms import FALLBACK, Form, not_spliced

SOURCE = Path(__file__).with_name("vllm_plugin")
PACKAGE = "vlm_vllm"
FOLDER = "vllm_plugin"
PROJECT = """\
[build-system]
requires = ["setuptools>=77"]
build-backend = "setuptools.build_meta"

[project]
name = "vlm-compose-vllm"
description = "vlm's compositions in vLLM"
version = "{version}"
requires-python = ">=3.10"
dependencies = ["vlm-compose"]

[project.entry-points."vllm.general_plugins"]
vlm_compose = "{package}:register"

[tool.setuptools]
packages = ["{package}"]
"""


@register_export("vllm")
class VllmExport(HubExport):
    """A folder for vLLM: as hf, with an installable plug-in where vLLM has no class for it."""

    server = "vllm"

    def for_server(self, contents: Contents, form: Form, folder: Path) -> list[str]:
        """The plug-in, unless vLLM has the class itself.

        Raises WeightsError: images are not spliced into a causal sequence, or take a varying number of positions.
        """
        if form.architecture != FALLBACK:
            return []
        if reason := not_served(contents):
            fix = "vlm chat, vlm demo and transformers run it: --to hf"
            raise WeightsError(f"vllm cannot run the composition: {reason}", fix=fix)
        package = folder / FOLDER / PACKAGE
        package.mkdir(parents=True)
        project = PROJECT.format(version=VERSION, package=PACKAGE)
        (folder / FOLDER / "pyproject.toml").write_text(project, encoding="utf-8")
        for file in sorted(SOURCE.glob("*.py")):
            text = file.read_text(encoding="utf-8")
            text = text.replace('PLACEHOLDER = "<image>"', f"PLACEHOLDER = {contents.tokenizer.image!r}")
            (package / file.name).write_text(text, encoding="utf-8")
        return [f"{FOLDER}/: a class of vLLM (written for 0.33); pip install ./{FOLDER} where vLLM runs"]


def not_served(contents: Contents) -> str | None:
    """Why vLLM cannot run the composition with the plug-in; None if it can."""
    model = contents.model
    if reason := not_spliced(contents):
        return reason
    if model.counters() or not contents.processor.image.fixed_size:
        return "the number of an image's positions depends on the image"
    if questions(contents):
        return "a bridge reads the question about an image"
    if model.llm.banned_ids:
        return "the LLM has ids that are never generated (model.llm.banned_ids)"
    return None
