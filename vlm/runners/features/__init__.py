"""The feature cache of a run, and filling one ahead."""
