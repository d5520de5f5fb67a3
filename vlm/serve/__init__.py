"""Front ends: terminal and browser."""
