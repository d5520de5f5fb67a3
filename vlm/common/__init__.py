"""The ground: errors, registry, contracts, devices, paths, logging; and the import paths of earlier versions."""

from vlm.common.moved import install

VERSION = "0.1.0"
"""Of the package; ``vlm.__version__`` for users."""

install()
