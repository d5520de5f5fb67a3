"""Configuration: YAML to one typed, checked object."""
