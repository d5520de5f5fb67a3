"""Published weight files: one module per format, each with its declared key map."""
