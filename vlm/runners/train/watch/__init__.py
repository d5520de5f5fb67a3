"""What watches a run while it trains: jumps of the loss, and steps that do not end."""
