"""The HTTP server: the address that clients of OpenAI's API speak to, in front of one or several engines."""
