"""Several processes on one machine: their threads, what they say when one of them dies, and how they end."""
