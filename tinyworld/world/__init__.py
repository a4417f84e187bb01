"""The miniature world: captions, scenes, and their films."""
