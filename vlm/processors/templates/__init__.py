"""Conversation templates."""
