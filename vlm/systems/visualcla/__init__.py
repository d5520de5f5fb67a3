"""VisualCLA."""
