"""Runners that solve for weights instead of training them."""
