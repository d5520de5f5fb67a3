"""Inserts: modules that work before or after decoder layers of the LLM."""
