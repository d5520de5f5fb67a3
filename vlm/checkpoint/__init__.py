"""Weight files and run folders: safe reading, key maps of published files, atomic checkpoints."""
