"""Getting text out of a model."""
