"""Lynx."""
