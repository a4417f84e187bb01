"""One video, measured as it is read."""

import base64
import io
from collections.abc import Collection
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from evaluation.video.binned_mean import BinnedMean
from evaluation.video.drift import drift_curves, drift_scores, onset
from evaluation.video.features import FEATURES, describe, shrink
from evaluation.video.motion import Motion, Seam
from evaluation.video.progression import Progression
from evaluation.video.reader import open_video

PICTURES_A_SECOND = 4.0  # frames a second whose colour, detail and structure are measured
THUMBNAIL = 64  # pixels, height


@dataclass(frozen=True)
class Metric:
    """What a number means.

    Attributes:
        better: -1 where less is better, 1 where more is, 0 where neither.
        ranked: whether it counts in the average rank; parts of another metric do not.
    """

    label: str
    unit: str
    better: int
    ranked: bool
    digits: int = 2


METRICS = {
    "drift": Metric("drift score", "", -1, True),
    "colour": Metric("colour drift", "CIELAB", -1, False),
    "contrast": Metric("contrast drift", "octaves", -1, False),
    "saturation": Metric("saturation drift", "CIELAB", -1, False),
    "clipping": Metric("clipping drift", "% points", -1, False),
    "detail": Metric("detail drift", "octaves", -1, False),
    "structure": Metric("structure similarity", "", 1, False, 3),
    "flickering": Metric("temporal flickering score", "%", 1, False),
    "seams": Metric("seams", "a minute", -1, True),
    "frozen": Metric("frozen", "% of frames", -1, True, 1),
    "new content": Metric("new content", "pictures a minute", 0, False, 1),
    "motion": Metric("motion", "widths a minute", 0, False, 1),
    "net motion": Metric("net motion", "widths a minute", 0, False, 1),
}
CURVES = {  # curve -> what its axis says
    "drift": "drift",
    "colour": "colour drift, CIELAB",
    "detail": "detail drift, octaves",
    "saturation": "saturation change, CIELAB",
    "contrast": "contrast change, octaves",
    "clipping": "clipping change, % points",
    "structure": "structure similarity",
    "motion": "frame difference, levels",
}


@dataclass
class Measurement:
    """All that is known of one video.

    Attributes:
        scores: metric -> value; see `METRICS`.
        times, curves: seconds, and curve -> values at them.
        onset: second from which drift stays at 1 or more, or None.
        thumbnails: frame number -> JPEG as a data URI.
    """

    size: tuple[int, int]
    fps: float
    frames: int
    scores: dict[str, float]
    times: list[float]
    curves: dict[str, list[float]]
    seams: list[Seam]
    cuts: int
    onset: float | None
    thumbnails: dict[int, str] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return self.frames / self.fps

    def to_json(self) -> dict:
        """Plain data, without thumbnails."""
        record = asdict(self)
        del record["thumbnails"]
        return record


class Meter:
    """Measures a video frame by frame in memory that does not grow with its length.

    Args:
        fps: frames a second.
    """

    def __init__(self, fps: float) -> None:
        self.fps = fps
        self.count = 0
        self.every = max(1, round(fps / PICTURES_A_SECOND))
        self.motion = Motion(fps)
        self.progression = Progression(fps)
        self.pictures = BinnedMean(FEATURES)
        self.moves = BinnedMean(2)

    def add(self, frame: np.ndarray) -> None:
        """Measure the next frame [H, W, 3] of bytes."""
        small = shrink(frame)
        time = self.count / self.fps
        moved = self.motion.add(frame, small)
        if moved is not None:
            self.moves.add(time, moved)
        self.progression.add(small)
        if self.count % self.every == 0:
            self.pictures.add(time, describe(small))
        self.count += 1

    def finish(self, size: tuple[int, int]) -> Measurement:
        """Scores and curves of what was added."""
        self.motion.seams.close()
        times, x = self.pictures.read()
        curves = drift_curves(times, x)
        move_times, moves = self.moves.read()
        curves["motion"] = np.interp(times, move_times, moves[:, 0])
        rounded = {}
        for name in CURVES:
            rounded[name] = curves[name].round(5).tolist()
        return Measurement(
            size=size,
            fps=self.fps,
            frames=self.count,
            scores=self._scores(times, x),
            times=times.round(3).tolist(),
            curves=rounded,
            seams=self.motion.seams.found,
            cuts=self.motion.seams.counts["cut"],
            onset=onset(times, curves["drift"]),
        )

    def _scores(self, times: np.ndarray, x: np.ndarray) -> dict[str, float]:
        scores = drift_scores(times, x)
        difference, frozen = self.moves.sums.sum(0, dtype=np.float64) / (self.count - 1)
        scores["flickering"] = 100 * (255 - float(difference)) / 255
        scores["seams"] = 60 * self.motion.seams.counts["seam"] * self.fps / self.count
        scores["frozen"] = 100 * float(frozen)
        return scores | self.progression.scores()

    @property
    def nbytes(self) -> int:
        """Bytes of memory held between frames."""
        return self.motion.nbytes + self.progression.nbytes + self.pictures.nbytes + self.moves.nbytes


def measure(path: str | Path, thumbnails: Collection[int] = ()) -> Measurement:
    """Measure the video at `path`, and keep small pictures of the frames numbered in `thumbnails`.

    Raises:
        BadVideo: it cannot be read to its end.
    """
    video, frames = open_video(path)
    meter = Meter(video.fps)
    kept = {}
    for number, frame in enumerate(frames):
        meter.add(frame)
        if number in thumbnails:
            kept[number] = thumbnail(frame)
    result = meter.finish(video.size)
    result.thumbnails = kept
    return result


def thumbnail(frame: np.ndarray) -> str:
    """Frame [H, W, 3] of bytes as a small JPEG in a data URI."""
    file = io.BytesIO()
    Image.fromarray(shrink(frame, THUMBNAIL)).save(file, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
