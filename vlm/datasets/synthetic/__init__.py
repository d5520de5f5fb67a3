"""A made-up picture world: scenes, their pictures and the language about them. Needs numpy and PIL only."""
