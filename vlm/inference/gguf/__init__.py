"""A composition as the two files of llama.cpp: a language model and a projector."""
