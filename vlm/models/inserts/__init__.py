"""Modules that a fusion inserts into the LLM's layers."""
