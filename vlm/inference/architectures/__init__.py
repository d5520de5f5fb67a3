"""Folders of published models, as transformers saves them: the composition of one, and a comparison with it."""
