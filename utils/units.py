"""Sizes in the units that people read."""


def in_units(size: int) -> str:
    """Bytes for a person: 11.4 GB, 3.2 MB, 10 kB."""
    if size >= 1e9:
        return f"{size / 1e9:.1f} GB"
    if size >= 1e6:
        return f"{size / 1e6:.1f} MB"
    return f"{size / 1e3:.0f} kB"
