"""Registered dataset formats."""
