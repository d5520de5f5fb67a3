"""The version of the package; ``vlm.__version__`` outside it."""

VERSION = "0.1.0"
