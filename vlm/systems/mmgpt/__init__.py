"""Multimodal-GPT."""
