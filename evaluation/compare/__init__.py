"""Methods, compared over the videos that all of them have."""
