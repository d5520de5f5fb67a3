"""Video recipes."""
