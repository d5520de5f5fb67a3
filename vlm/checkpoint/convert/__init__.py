"""Weights of one published layout made of others: joined, merged, a tensor at a time."""
