"""How a model is spread over processes and memory: copies, shards, activation checkpointing."""
