"""Looking at datasets before training on them, and writing them as shards: what ``vlm data`` does."""
