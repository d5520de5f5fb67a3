"""Acme-VLM, a whole system out of tree: importing it registers its parts."""

from acme import checkpoint, parts

__all__ = ["checkpoint", "parts"]
