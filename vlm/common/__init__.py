"""The ground: errors, registry, contracts, devices, paths, logging; and the import paths of earlier versions."""

from vlm.common.moved import install

install()
