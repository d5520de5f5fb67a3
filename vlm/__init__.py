"""Compose, train, chat with and serve vision-language models from YAML.

Importing this package loads nothing heavy (no torch): parts are found by name
through :mod:`vlm.common.registry` when a configuration asks for them.
"""

__version__ = "0.1.0"

import vlm.common  # noqa: E402, F401 - the import paths of earlier versions
