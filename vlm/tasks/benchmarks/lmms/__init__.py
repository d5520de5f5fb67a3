"""lmms-eval: our models in its commands, and its task files on our engine. Only ``task`` and ``plugin`` import it."""
