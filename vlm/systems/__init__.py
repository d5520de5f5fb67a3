"""Published systems, a folder each: compositions, run files, weight formats, templates."""
