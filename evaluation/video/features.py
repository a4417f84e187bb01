"""What one picture looks like: colour, saturation, clipping, fine detail, structure. Pure functions of a frame."""

import numpy as np
from PIL import Image

WORKING_HEIGHT = 240  # shorter side, pixels: frames are measured at this size, smaller ones as they are
CELLS = 8  # a side, of the structure descriptor
ORIENTATIONS = 8
CLIP_LOW = 2
CLIP_HIGH = 253
DETAIL_FLOOR = 0.25  # CIELAB units: detail below this is invisible and its logarithm is noise

SCALARS = ("L", "a", "b", "L_std", "a_std", "b_std", "contrast", "saturation", "clipping", "detail_luma", "detail_hue")
FEATURES = len(SCALARS) + CELLS * CELLS * ORIENTATIONS  # values that `describe` gives

SRGB = np.arange(256, dtype=np.float32) / 255
LINEAR = np.where(SRGB <= 0.04045, SRGB / 12.92, ((SRGB + 0.055) / 1.055) ** 2.4).astype(np.float32)
# IEC 61966-2-1 primaries, D65 white, rows divided by the white point.
XYZ = np.array(
    [[0.4339, 0.3763, 0.1898], [0.2126, 0.7152, 0.0722], [0.0178, 0.1095, 0.8727]],
    np.float32,
)


def shrink(frame: np.ndarray, height: int = WORKING_HEIGHT) -> np.ndarray:
    """Frame [H, W, 3] of bytes, averaged down so that its shorter side is at most `height` pixels."""
    short = min(frame.shape[:2])
    if short <= height:
        return frame
    small_width = round(frame.shape[1] * height / short)
    small_height = round(frame.shape[0] * height / short)
    return np.asarray(Image.fromarray(frame).resize((small_width, small_height), Image.Resampling.BOX))


def describe(frame: np.ndarray) -> np.ndarray:
    """Features of a frame [H, W, 3] of bytes at working size.

    Returns:
        [FEATURES]: mean and standard deviation of L*, a*, b*;
        contrast, log2 of the standard deviation of L* (floor 1); saturation, the mean chroma
        sqrt(a*^2 + b*^2); clipping, the share of colour values at most 2 or at least 253; detail, log2 of
        the mean absolute Laplacian of L* and of (a*, b*); then the structure descriptor.
    """
    x = to_lab(frame)
    mean = x.mean((0, 1))
    std = x.std((0, 1))
    chroma = float(np.hypot(x[..., 1], x[..., 2]).mean())
    clipped = float(((frame <= CLIP_LOW) | (frame >= CLIP_HIGH)).mean())
    edges = np.abs(laplacian(x)).mean((0, 1))
    detail = np.log2(DETAIL_FLOOR + np.array([edges[0], edges[1] + edges[2]]))
    contrast = np.log2(max(float(std[0]), 1.0))
    scalars = [*mean, *std, contrast, chroma, clipped, *detail]
    return np.concatenate([np.array(scalars, np.float32), structure(x[..., 0])])


def to_lab(frame: np.ndarray) -> np.ndarray:
    """sRGB bytes [H, W, 3] to CIELAB under D65 (CIE 15)."""
    x = LINEAR[frame] @ XYZ.T
    x = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    lightness = 116 * x[..., 1] - 16
    return np.stack([lightness, 500 * (x[..., 0] - x[..., 1]), 200 * (x[..., 1] - x[..., 2])], axis=-1)


def laplacian(x: np.ndarray) -> np.ndarray:
    """Five-point Laplacian of the inner pixels of x [H, W, C]."""
    inner = x[1:-1, 1:-1]
    return 4 * inner - x[:-2, 1:-1] - x[2:, 1:-1] - x[1:-1, :-2] - x[1:-1, 2:]


def structure(lightness: np.ndarray) -> np.ndarray:
    """Histograms of oriented gradients (Dalal & Triggs 2005) of lightness [H, W], on a grid over the whole frame.

    Each of CELLS x CELLS cells has a histogram of ORIENTATIONS unsigned directions, weighted by gradient
    magnitude. The whole is divided by its sum and the square root is taken (Arandjelovic & Zisserman 2012), so that
    contrast and brightness hardly change it and a few strong edges do not rule it.
    """
    dy = lightness[2:, 1:-1] - lightness[:-2, 1:-1]
    dx = lightness[1:-1, 2:] - lightness[1:-1, :-2]
    height, width = dx.shape
    direction = np.floor(np.arctan2(dy, dx) * (ORIENTATIONS / np.pi)).astype(np.int32) % ORIENTATIONS
    row = np.arange(height) * CELLS // height
    column = np.arange(width) * CELLS // width
    cell = (row[:, None] * CELLS + column) * ORIENTATIONS + direction
    weight = np.hypot(dx, dy)
    histogram = np.bincount(cell.ravel(), weight.ravel(), CELLS * CELLS * ORIENTATIONS)
    # Half a unit of lightness a pixel, spread over all directions, keeps noise in flat cells from counting.
    histogram += 0.5 * height * width / histogram.size
    return np.sqrt(histogram / histogram.sum()).astype(np.float32)


def thumbprint(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Grey picture of `size` (width, height), flattened: float32 in 0..255."""
    return np.asarray(Image.fromarray(frame).convert("L").resize(size, Image.Resampling.BOX), np.float32).ravel()
