"""What an engine has done and holds, in numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Stats:
    """Counts since the engine was made, and what it holds now; positions include visual tokens."""

    running: int = 0  # answers being written
    waiting: int = 0  # questions that have not begun
    asked: int = 0
    stopped: int = 0  # answers that ended by an end token or stop text
    at_length: int = 0  # that were as long as they may be
    cancelled: int = 0
    timed_out: int = 0
    failed: int = 0
    prompt_tokens: int = 0  # positions of prompts
    cached_tokens: int = 0  # of these, found in the prefix cache
    written_tokens: int = 0
    steps: int = 0  # calls of the language model
    feature_hits: int = 0  # images and videos that were not encoded again
    feature_misses: int = 0
    feature_bytes: int = 0
    prefix_bytes: int = 0
    kv_bytes: int = 0  # keys and values of the answers being written
    guessed: int = 0  # tokens guessed by lookup
    guessed_right: int = 0
