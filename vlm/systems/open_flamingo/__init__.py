"""OpenFlamingo."""
