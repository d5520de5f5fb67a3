"""Which layout a file of training data has, and the entry that reads it."""
