"""A composition as a folder that transformers loads."""
