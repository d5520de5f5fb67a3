"""Gemma 3 with images (arXiv:2503.19786)."""
