"""Looking at datasets before training on them, and writing them anew: what ``vlm data`` does."""
