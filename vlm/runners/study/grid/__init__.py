"""From what a study file says to its cells: axes, combinations, resolved runs, lengths and plans."""
