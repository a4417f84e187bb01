"""Whether a place looks as it did when it comes back into view.

    latent frame   0 . . . . . . . 20 . . . . . . . . . . . 60
    camera         place A          far from A               place A again
                   `first`          out of view for at       `later`
                                    least a window

A return is a frame that shows a place again after it has been forgotten: out of view for at least as many latent
frames on end as the context's window holds. The two frames of a return are laid over each other and compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinyworld.judging.detect import runs
from tinyworld.judging.track import QUICK_STEP, find_shift, overlap
from tinyworld.world.scene import FIRST_PASS, VIEW

FEWEST = 4  # returns without which a video has not come back
SAME_PLACE = QUICK_STEP // 2  # pixels between two camera positions of one place
ALIGNED_BY = QUICK_STEP  # pixels at most by which the two frames are shifted before they are compared
BEST_PSNR = 60.0  # dB, of equal pictures


@dataclass(frozen=True)
class Return:
    """Two latent frames that show one place: the earliest one there, and one after the place had been forgotten."""

    first: int
    later: int


def visits(in_view: np.ndarray, window: int) -> list[range]:
    """Stretches of latent frames in which a place is in view.

    Args:
        in_view: [latents] whether it is.
        window: absences of fewer latent frames do not end a visit.
    """
    return [range(*run) for run in runs(in_view, bridge=window - 1)]


def find_returns(positions: np.ndarray, window: int) -> list[Return]:
    """All returns on a camera's way.

    Args:
        positions: [latents] pixels.
        window: latent frames that the context holds.
    """
    returns = []
    for later in range(window, len(positions)):
        distance = np.abs(positions[: later + 1] - positions[later])
        stays = visits(distance <= VIEW // 2, window)  # while the middle of the later frame is in view
        before_this_visit = distance[: stays[-1].start]
        if len(before_this_visit) and len(stays) > 1 and before_this_visit.min() <= SAME_PLACE:
            first = int(np.argmax(distance <= SAME_PLACE))
            returns.append(Return(first, later))
    return returns


def revisit_scores(frames: np.ndarray, positions: np.ndarray, window: int) -> dict[str, float | None]:
    """How like themselves places are when they come back.

    - revisit error: mean absolute difference in levels (0 to 255) between the two frames of a return, above the
      subject's lane, aligned by the shift of at most ALIGNED_BY pixels at which they differ least.
    - revisit PSNR: of the same in dB, at most BEST_PSNR.
    - revisit consistency: 1 - error / the error of the later frames against other places, aligned alike. 1 is the
      same picture, 0 no better than another place.
    - came back: 1 if there are at least FEWEST returns. Without, a video has no error (None) and its consistency is 0.

    Args:
        frames: [latents, HEIGHT, VIEW, 3] uint8.
        positions: [latents] of the camera.
        window: latent frames that the context holds.
    """
    errors, square_errors, errors_elsewhere = [], [], []
    for found in find_returns(positions, window):
        later = frames[found.later]
        elsewhere = other_places(positions, found.later)
        if not elsewhere:
            continue
        aligned = find_shift(frames[found.first], later, ALIGNED_BY)
        errors.append(aligned.error)
        before, after = overlap(frames[found.first], later, aligned.pixels)
        square_errors.append(float(np.square(before - after).mean()))
        errors_elsewhere.append(np.mean([find_shift(frames[other], later, ALIGNED_BY).error for other in elsewhere]))
    if len(errors) < FEWEST:
        return {"revisit error": None, "revisit PSNR": None, "revisit consistency": 0.0, "came back": 0.0}
    decibels = 10 * np.log10(255**2 / np.maximum(square_errors, 1e-9))
    return {
        "revisit error": float(np.mean(errors)),
        "revisit PSNR": float(np.mean(np.minimum(BEST_PSNR, decibels))),
        "revisit consistency": float(1 - np.mean(errors) / max(np.mean(errors_elsewhere), 1e-9)),
        "came back": 1.0,
    }


def other_places(positions: np.ndarray, later: int, most: int = 3) -> Sequence[int]:
    """Up to `most` frames of the first pass, evenly spread, that share no column with the frame `later`."""
    distance = np.abs(positions[:FIRST_PASS] - positions[later])
    apart = np.flatnonzero(distance >= VIEW)
    if not len(apart):
        return []
    picks = np.linspace(0, len(apart) - 1, min(most, len(apart))).astype(int)
    return apart[picks].tolist()
