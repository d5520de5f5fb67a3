"""LLaVA-1.5 and what has its form (arXiv:2310.03744)."""
