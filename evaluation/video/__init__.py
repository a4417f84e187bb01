"""One video, measured as it is read."""
