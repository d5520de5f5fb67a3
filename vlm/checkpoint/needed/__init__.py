"""The files that compositions need: what is known of them, and whether they are there."""
