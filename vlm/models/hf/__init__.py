"""What every model of transformers needs, language model or vision tower."""
