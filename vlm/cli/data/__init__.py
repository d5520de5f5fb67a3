"""``vlm data``: what datasets hold."""
