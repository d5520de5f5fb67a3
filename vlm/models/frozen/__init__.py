"""The frozen first parts of a model, whose results a feature cache can keep."""
