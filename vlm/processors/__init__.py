"""Pictures, text and conversations to model inputs."""
