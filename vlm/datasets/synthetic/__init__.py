"""A made-up image world: scenes, their images and the language about them. Needs numpy and PIL only."""
