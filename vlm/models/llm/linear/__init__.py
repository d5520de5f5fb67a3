"""Linear layers of a frozen LLM whose weights are stored in fewer bits, for answers on a CPU."""
