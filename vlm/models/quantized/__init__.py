"""Short storage of frozen weights: what a CPU answers with, and what LoRA is trained around."""
