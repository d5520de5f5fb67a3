"""Tensors of which each process holds a part: written by all of them, read under any other split."""
