"""What visitors of a page think of answers, as a dataset."""
