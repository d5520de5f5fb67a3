"""Makers of the tiny frozen foundations that ``vlm quickstart`` aligns."""
