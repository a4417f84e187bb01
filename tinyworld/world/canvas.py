"""A picture under work: hard shapes on sub-pixels, seen through a soft lens."""

from functools import cache

import numpy as np

from tinyworld.world.scene import HEIGHT, WIDTH

SAMPLES = 3  # sub-pixels a side, on which shapes are painted hard
LENS = 0.8  # pixels, the deviation of the Gaussian through which they are seen: what a codec of 1.5 M can hold


class Canvas:
    """A picture under work: `y`, `x` are pixel coordinates of every sub-pixel."""

    def __init__(self, height: int = HEIGHT, width: int = WIDTH):
        self.y, self.x = np.mgrid[0 : height * SAMPLES, 0 : width * SAMPLES].astype(np.float32) / SAMPLES
        self.rgb = np.zeros((*self.x.shape, 3), np.float32)

    def near(self, x: float, reach: float) -> "Canvas":
        """The part of the canvas within `reach` pixels of a column: small shapes cost less there."""
        part = object.__new__(Canvas)
        columns = slice(max(int((x - reach) * SAMPLES), 0), max(int((x + reach) * SAMPLES), 0))
        part.y = self.y[:, columns]
        part.x = self.x[:, columns]
        part.rgb = self.rgb[:, columns]
        return part

    def fill(self, mask: np.ndarray, colour, alpha: float = 1.0) -> None:
        """Paint where `mask` holds; `colour` is one triple or an array like the picture."""
        colour = np.broadcast_to(np.asarray(colour, np.float32), self.rgb.shape)
        self.rgb[mask] += alpha * (colour[mask] - self.rgb[mask])

    def pixels(self) -> np.ndarray:
        return seen(self.rgb).clip(0, 255).round().astype(np.uint8)


def seen(x: np.ndarray) -> np.ndarray:
    """Sub-pixels [H * SAMPLES, W * SAMPLES, C] to pixels [H, W, C], through the lens."""
    rows = _lens(x.shape[0] // SAMPLES)
    columns = _lens(x.shape[1] // SAMPLES)
    return np.einsum("yh,hwc,xw->yxc", rows, x, columns, optimize=True)


@cache
def _lens(size: int) -> np.ndarray:
    """[size, size * SAMPLES] what each sub-pixel along a side adds to each pixel."""
    away = np.arange(size)[:, None] + 0.5 - (np.arange(size * SAMPLES) + 0.5) / SAMPLES
    weight = np.exp(-0.5 * np.square(away / LENS)).astype(np.float32)
    return weight / weight.sum(1, keepdims=True)


# Shapes: masks over the sub-pixels


def shaded(canvas: Canvas, x: float, half: float, colour: np.ndarray) -> np.ndarray:
    """A colour that darkens from left to right over an object `2 * half` wide."""
    side = ((canvas.x - x) / half).clip(-1, 1)[..., None]
    return (np.asarray(colour, np.float32) * (1 - 0.16 * side)).clip(0, 255)


def ellipse(canvas: Canvas, x: float, y: float, a: float, b: float) -> np.ndarray:
    return ((canvas.x - x) / a) ** 2 + ((canvas.y - y) / b) ** 2 <= 1


def box(canvas: Canvas, x: float, foot: float, half: float, height: float) -> np.ndarray:
    return (np.abs(canvas.x - x) <= half) & (canvas.y <= foot) & (canvas.y >= foot - height)


def triangle(canvas: Canvas, x: float, base: float, half: float, height: float) -> np.ndarray:
    """Base line at y = `base`; a negative height makes it point down."""
    rise = (base - canvas.y) / height
    return (rise >= 0) & (rise <= 1) & (np.abs(canvas.x - x) <= half * (1 - rise))
