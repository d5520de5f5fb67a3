"""Bridges: ``Features`` -> ``Features``, from the vision encoder's width to the LLM's."""
