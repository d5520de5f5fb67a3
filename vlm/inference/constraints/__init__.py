"""What the tokens of an answer must follow, such as a JSON schema."""
