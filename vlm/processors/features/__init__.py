"""Feature cache: results of the frozen visual parts on disk, found by what is in a file."""
