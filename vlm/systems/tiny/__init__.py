"""The embedded small model of the quickstart."""
