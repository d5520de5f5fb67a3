"""Many questions at a time: answers that are being written, and the engine room that writes them together."""
