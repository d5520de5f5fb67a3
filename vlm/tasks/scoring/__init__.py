"""Metrics as pure functions of texts and numbers, without a model and without Java."""
