"""The endpoints of the API: requests in, answers of an engine out, whole or streamed."""
