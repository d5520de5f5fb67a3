"""``vlm chat``: a conversation in the terminal."""
