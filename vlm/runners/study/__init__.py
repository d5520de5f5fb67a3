"""Studies: many runs that differ in named things, as one file; see docs/guides/studies.md."""
