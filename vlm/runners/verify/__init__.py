"""Whether a model still computes what was recorded when it was made."""
