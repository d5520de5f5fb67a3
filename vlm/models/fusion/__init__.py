"""Fusions: how visual tokens reach the LLM."""
