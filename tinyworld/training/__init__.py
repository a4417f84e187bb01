"""The training of the models that film the world: codec, text encoder, transformer."""
