"""The pages tell the truth: commands parse, links lead somewhere, YAML is read, code compiles."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
import yaml

from vlm.common.registry import names, resolve
from vlm.config.api import load_config

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).resolve().parents[2] / "docs")]
from pages import ROOT, blocks, commands, pages, problem  # noqa: E402

LLM = ROOT / "tests" / "golden" / "minigpt4" / "open" / "llm"


def test_commands_are_right() -> None:
    found = [(page.relative_to(ROOT), c) for page in pages() for c in commands(page.read_text(encoding="utf-8"))]
    assert len(found) > 100
    bad = [f"{page}: {command}: {wrong}" for page, command in found if (wrong := problem(command))]
    assert not bad, "\n".join(bad)


def test_links_lead_somewhere() -> None:
    bad = []
    for page in [*pages(), ROOT / "ARCHITECTURE.md", ROOT / "CHANGELOG.md"]:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for link in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if "://" not in link and not (page.parent / link).exists():
                bad.append(f"{page.relative_to(ROOT)}: {link}")
    assert not bad, "\n".join(bad)


def test_python_blocks_compile() -> None:
    for page in pages():
        for block in blocks(page.read_text(encoding="utf-8"), "python"):
            ast.parse(block)


def test_the_model_of_the_guide_checks() -> None:
    text = (ROOT / "docs" / "guides" / "compose.md").read_text(encoding="utf-8")
    config = yaml.safe_load(next(b for b in blocks(text, "yaml") if "my_model" in b))
    config["model"]["llm"]["path"] = config["model"]["weights"][1]["path"] = str(LLM)
    checked = load_config(config, check="none")
    assert checked.model.train == {"bridge.*": True, "llm.lora": True}
    assert checked.datasets["mine"].format.name == "web_shards"


@pytest.mark.heavy
def test_the_studies_of_the_guides_check(tmp_path: Path) -> None:
    """Every whole study on the pages gives cells, and no cell of it is wrong; its data are not looked for."""
    from vlm.runners.study.grid.build import Builder
    from vlm.runners.study.grid.opened import open_file

    found = []
    for page in sorted((ROOT / "docs" / "guides").glob("stud*.md")):
        for block in blocks(page.read_text(encoding="utf-8"), "yaml"):
            if "base:" in block and "axes:" in block:
                file = tmp_path / f"{page.stem}{len(found)}.yaml"
                file.write_text(block)
                builder = Builder(open_file(file), "weights", fits=True)
                found.append(builder.examine())
                assert not builder.problems(), f"{page.name}: {block}"
    assert len(found) >= 5 and all(len(study.cells) > 1 for study in found)


def test_the_guide_names_what_ships() -> None:
    text = (ROOT / "docs" / "guides" / "compose.md").read_text(encoding="utf-8")
    for kind, key in {"vision": "vision", "bridge": "bridge", "fusion": "fusion", "insert": "inserts"}.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{key}` |"))
        shipped = {name for name in names(kind) if resolve(kind, name).__module__.startswith("vlm.")}
        assert shipped == set(re.findall(r"`(\w+)`", row.split("|")[3])) - {"gated_xattn"} | (
            {"gated_xattn"} if kind == "insert" else set()
        )


def test_the_reference_has_every_option() -> None:
    sys.path.insert(0, str(ROOT / "docs"))
    import dataclasses

    from gen_reference import configuration

    from vlm.config.run import RunConfig

    page = configuration()
    assert all(f"| `{field.name}` |" in page for field in dataclasses.fields(RunConfig))
    for kind in ("vision", "bridge", "dataset", "checkpoint_format", "export", "source"):
        assert all(f"### {kind}: {name}" in page for name in names(kind))


def test_the_site_lists_every_page() -> None:
    """Every page under docs/ is in the navigation of mkdocs.yml, and so are those copied from elsewhere."""
    text = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    from site_pages import copied

    own = {f.relative_to(ROOT / "docs").as_posix() for f in ROOT.glob("docs/**/*.md")}
    listed = set(re.findall(r": ([\w/]+\.md)$", text, re.MULTILINE))
    assert listed == own | set(copied().values()) | {"reference/configuration.md"}


def test_links_are_turned_into_those_of_the_site() -> None:
    from site_pages import rewrite

    pages = {"vlm/systems/lynx/README.md": "systems/lynx.md", "docs/python.md": "python.md"}
    text = "[Lynx](../../vlm/systems/lynx/README.md#a) [code](../../vlm/models/build.py) [x](https://x.y) [n](no.md)"
    assert rewrite(text, "docs/guides/a.md", "guides/a.md", pages) == (
        "[Lynx](../systems/lynx.md#a) code (`vlm/models/build.py`) [x](https://x.y) [n](no.md)"
    )
