"""What a video shows, read off its pixels, and how that compares with the truth of its scene."""
