"""Quantised weights in files of their own, and what becomes of them when LoRA is merged."""
