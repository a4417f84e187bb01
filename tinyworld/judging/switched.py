"""What a change of caption does to a video: A, then B, then A again.

Frames are looked at block by block; `detect` says what they show. The seam is measured on every frame.
"""

from dataclasses import dataclass

import numpy as np

from tinyworld.judging.detect import detect_objects, detect_subjects, ground_and_time
from tinyworld.judging.measure import Measures
from tinyworld.judging.track import CameraTrack, find_shift
from tinyworld.world.captions import Meaning
from tinyworld.world.scene import FPS, ONE_LATENT, VIEW, pixel_frames

VERSION = 1  # of these measures
LAST = 2  # blocks at a part's end whose pictures say what is left of another part
ELSEWHERE = VIEW // 2  # pixels between two camera positions of different places


@dataclass(frozen=True)
class Course:
    """When a video's caption changes.

    Attributes:
        switch: latent frame at which B begins.
        back: latent frame at which A begins again.
        frames: latent frames in all.
        block: latent frames of a block.
    """

    switch: int
    back: int
    frames: int
    block: int

    def blocks(self, video: np.ndarray, first: int, end: int) -> list[np.ndarray]:
        """The blocks of a video [T, H, W, 3] from one latent frame to another, each [t, H, W, 3]."""
        found = []
        for start in range(first, end, self.block):
            found.append(video[pixel_frames(start) : pixel_frames(start + self.block)])
        return found


def measure_switch(video: np.ndarray, course: Course, before: Meaning, after: Meaning) -> Measures:
    """All measures of a video [T, HEIGHT, VIEW, 3] uint8 whose caption goes from `before` to `after` and back.

    - blocks until X: how many blocks of B there are until one shows B's ground, time or animal, that one included;
      one more than B has where none does. None where A and B agree in it.
    - X shows: whether B's last block shows it.
    - new objects, old objects: of the objects sighted in B's last blocks, the shares of B's and of A's alone; None
      where nothing is sighted.
    - seam: the difference of the two frames at the switch, over the usual one of neighbouring frames before it.
    - ground and time are back, animal is back: whether the last block shows A's.
    - place is back: `likeness` of the last blocks to A's first part.
    """
    present = course.blocks(video, course.switch, course.back)
    again = course.blocks(video, course.back, course.frames)
    found: Measures = {}
    new = _said(after)
    for name, old in _said(before).items():
        if new[name] == old:
            continue
        shown = [what_shows(frames)[name] == new[name] for frames in present]
        found[f"blocks until {name}"] = float(shown.index(True) + 1 if any(shown) else len(shown) + 1)
        found[f"{name} shows"] = float(shown[-1])
    found |= objects_left(np.concatenate(present[-LAST:]), before, after)
    found["seam"] = seam(video, pixel_frames(course.switch))
    last = what_shows(again[-1])
    old = _said(before)
    found["ground and time are back"] = float((last["ground"], last["time"]) == (old["ground"], old["time"]))
    found["animal is back"] = float(last["animal"] == old["animal"])
    first_part = video[: pixel_frames(course.switch)]
    found["place is back"] = likeness(np.concatenate(again[-LAST:]), first_part)
    return found


def what_shows(frames: np.ndarray) -> dict[str, str | None]:
    """Ground, time and animal of a stretch [t, HEIGHT, VIEW, 3]; an animal is one that most of its frames show."""
    ground, time = ground_and_time(frames)
    subjects = detect_subjects(frames, time)
    most = max(set(subjects), key=subjects.count)
    return {"ground": ground, "time": time, "animal": most if 2 * subjects.count(most) > len(subjects) else None}


def objects_left(frames: np.ndarray, before: Meaning, after: Meaning) -> Measures:
    """Of the objects sighted in a stretch under B, the shares that B's caption names, and A's alone."""
    _, time = ground_and_time(frames)
    looks = []
    for frame in frames[::ONE_LATENT]:
        looks += [(one.colour, one.kind) for one in detect_objects(frame, time) if one.kind is not None]
    if not looks:
        return {"new objects": None, "old objects": None}
    new = [look in after.objects for look in looks]
    old = [look in before.objects and look not in after.objects for look in looks]
    return {"new objects": float(np.mean(new)), "old objects": float(np.mean(old))}


def seam(video: np.ndarray, frame: int) -> float:
    """The mean absolute difference of a frame to the one before it, over the median of the second before."""
    stretch = video[frame - FPS - 1 : frame + 1].astype(np.float32)
    differences = np.abs(np.diff(stretch, axis=0)).mean((1, 2, 3))
    return float(differences[-1] / max(np.median(differences[:-1]), 1e-6))


def likeness(later: np.ndarray, earlier: np.ndarray) -> float | None:
    """Whether pictures are of a place that was seen: 1 the same picture, 0 as unlike as another place of that part.

    It is 1 - error / error elsewhere. The error is the least mean absolute difference to an earlier picture, aligned
    by a shift; elsewhere are the earlier pictures whose camera stood at least ELSEWHERE pixels from that one's. As
    the nearest of many is taken, a new place has more than 0, too: compare with a video made anew.

    Args:
        later, earlier: [t, HEIGHT, VIEW, 3]; one frame a latent frame is looked at.
    """
    known = earlier[::ONE_LATENT]
    positions = CameraTrack.of(known).positions
    errors, elsewhere = [], []
    for frame in later[::ONE_LATENT]:
        differences = np.array([find_shift(one, frame).error for one in known])
        nearest = int(differences.argmin())
        apart = np.abs(positions - positions[nearest]) >= ELSEWHERE
        if apart.any():
            errors.append(differences[nearest])
            elsewhere.append(differences[apart].mean())
    if not errors:
        return None
    return float(1 - np.mean(errors) / max(np.mean(elsewhere), 1e-6))


def _said(meaning: Meaning) -> dict[str, str]:
    return {"ground": meaning.ground, "time": meaning.time, "animal": meaning.subject}
