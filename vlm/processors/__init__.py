"""Images, text and conversations to model inputs."""
