"""``vlm data``: list corpora, inspect and check datasets, write web shards."""
