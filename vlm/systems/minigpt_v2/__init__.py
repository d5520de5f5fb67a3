"""MiniGPT-v2."""
