"""PaliGemma and PaliGemma 2 (arXiv:2407.07726, arXiv:2412.03555)."""
