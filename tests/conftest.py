"""Options and fixtures of the whole suite."""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
GOLDEN = TESTS / "golden"
LANES = ("golden", "equivalence", "faults", "browser", "cli", "extend")
"""Folders whose tests have a marker of the same name."""

STRICT = ("error::DeprecationWarning", "error::FutureWarning")
OWN_CALLS = (
    "default::DeprecationWarning",
    "default::FutureWarning",
    r"error::DeprecationWarning:(vlm|tests)\b",
    r"error::FutureWarning:(vlm|tests)\b",
    "error:.* is deprecated and will be removed in version .* for `:FutureWarning",  # transformers, of an argument
)
"""Filters with ``--untested-versions``: other packages may warn of each other, our own calls must not."""

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the suite runs in several processes
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["VLM_STATE"] = tempfile.mkdtemp(prefix="vlm_state_")  # what tests train is not noted at the user's home


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--golden-root",
        default=str(GOLDEN),
        metavar="DIR",
        help="folder <system>/<case>/ of recorded tensors of published code (default: those committed)",
    )
    parser.addoption(
        "--untested-versions",
        action="store_true",
        help="for versions other than those of constraints.txt: only deprecation warnings of our own calls are errors",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Deprecation warnings are errors, in the processes that tests start too."""
    if config.getoption("--untested-versions"):
        for line in OWN_CALLS:
            config.addinivalue_line("filterwarnings", line)
    else:
        os.environ["PYTHONWARNINGS"] = ",".join(STRICT)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Give the tests of a folder its marker."""
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0] if item.path.is_relative_to(TESTS) else ""
        if folder in LANES:
            item.add_marker(folder)


@pytest.fixture(autouse=True)
def logger_as_imported() -> Iterator[None]:
    """The library's logger as it is without a command line, so that tests do not write to each other's streams."""
    yield
    logger = logging.getLogger("vlm")
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        if type(handler) in (logging.StreamHandler, logging.FileHandler):
            handler.close()
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def golden_root(pytestconfig: pytest.Config) -> Path:
    """The folder given by ``--golden-root``."""
    return Path(pytestconfig.getoption("--golden-root"))


@pytest.fixture(scope="session")
def golden_cases(golden_root: Path) -> Callable[[str], list[Path]]:
    """``golden_cases("minigpt4")`` -> case folders of a system, sorted."""

    def cases(system: str) -> list[Path]:
        return sorted(p for p in (golden_root / system).iterdir() if p.is_dir())

    return cases


@pytest.fixture
def open_case() -> Path:
    """The committed main case of MiniGPT-4: weight files, data and configuration of one small model."""
    return GOLDEN / "minigpt4" / "open"
