"""A procedural world in miniature, and the training of the backbone that films it."""
