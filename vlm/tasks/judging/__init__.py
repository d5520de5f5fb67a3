"""Judges that are language models: what they are asked, how their verdict is read, how far people agree with it."""
