"""The model: vision encoder, bridges, fusion, LLM, and their composition."""
