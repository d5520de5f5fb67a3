"""A package outside of vlm that brings one part of each kind."""
