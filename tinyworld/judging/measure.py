"""What the judge finds in a video of a caption: one number for each measure.

Videos are [frames, HEIGHT, VIEW, 3] uint8. Every measure is first to be run on true videos: what it misses there is
its own error (`python -m tinyworld.report`). Motion, places and objects are read off one frame a latent frame.
"""

import numpy as np

from evaluation.video.binned_mean import BinnedMean
from evaluation.video.drift import drift_scores
from evaluation.video.features import CELLS, ORIENTATIONS, SCALARS, describe
from evaluation.video.measure import PICTURES_A_SECOND
from evaluation.video.progression import progression
from tinyworld.judging.detect import detect_objects, detect_subjects, ground_and_time
from tinyworld.judging.objects import (
    detect_all,
    frames_with,
    objects_in_first_pass,
    objects_kept,
    objects_kept_in_view,
)
from tinyworld.judging.revisits import revisit_scores
from tinyworld.judging.track import CameraTrack
from tinyworld.world.captions import Meaning
from tinyworld.world.film import Clip
from tinyworld.world.scene import FIRST_PASS, FPS, ONE_LATENT, pixel_frames

VERSION = 4  # of the measures: results of another one are not compared with these
Measures = dict[str, float | None]  # None where there is nothing to measure


def measure(video: np.ndarray, clip: Clip, window: int) -> Measures:
    """All measures of a whole video.

    Args:
        video: [frames, HEIGHT, VIEW, 3] uint8, made after the clip's caption.
        window: latent frames of context; a place returns when it was out of view for as many.
    """
    frames = video[::ONE_LATENT]
    track = CameraTrack.of(frames)
    detections = detect_all(video)
    in_look, in_colour = objects_in_first_pass(detections, clip.scene, clip.shot)
    return {
        **revisit_scores(frames, track.positions, window),
        "objects kept": objects_kept(detections, track.positions, window).share,
        "objects kept in view": objects_kept_in_view(detections, track.positions).share,
        "objects in the first pass": in_look,
        "colours in the first pass": in_colour,
        "subject kept": subject_kept(video, clip.meaning.subject),
        "ground and time kept": float(ground_and_time(video[-FPS:]) == (clip.meaning.ground, clip.meaning.time)),
        "motion plausible": float(track.plausible().mean()),
        "camera as trained": float(track.as_trained(clip.shot).mean()),
        "drift": drift(video),
        **progression(video, FPS),
    }


def caption_shown(video: np.ndarray, meaning: Meaning, seconds: float = 3.0) -> dict[str, bool]:
    """Whether the first seconds show the caption's ground, time of day, subject and first object.

    The object must be sighted in at least 3 of every second frame; in every shot of the world its first
    object lies wholly in the view for as long. `object's colour` asks for its colour in any shape. The subject
    must be seen in three quarters of these frames.
    """
    start = video[: round(seconds * FPS)]
    every_second = start[::2]
    ground, time = ground_and_time(start)
    detections = [detect_objects(frame, time) for frame in every_second]
    subject_frames = detect_subjects(every_second, time).count(meaning.subject)
    colour, kind = meaning.objects[0]
    return {
        "ground": ground == meaning.ground,
        "time": time == meaning.time,
        "subject": subject_frames >= 0.75 * len(every_second),
        "object": frames_with(detections, colour, kind) >= 3,
        "object's colour": frames_with(detections, colour) >= 3,
    }


def subject_kept(video: np.ndarray, subject: str) -> float:
    """Share of the frames after the first pass that show this subject under the light of the first second.

    One frame a latent frame is looked at; of a video that ends before, the last one.
    """
    _, time = ground_and_time(video[:FPS])
    frames = video[::ONE_LATENT]
    later = frames[FIRST_PASS:] if len(frames) > FIRST_PASS else frames[-1:]
    return detect_subjects(later, time).count(subject) / len(later)


def captioned_share(video: np.ndarray, meaning: Meaning) -> float | None:
    """Share of the objects sighted in the first pass, frame by frame, that are among the caption's."""
    captioned = []
    for seen in detect_all(video[: pixel_frames(FIRST_PASS)]):
        for one in seen:
            if one.kind is not None:
                captioned.append((one.colour, one.kind) in meaning.objects)
    return float(np.mean(captioned)) if captioned else None


def drift(video: np.ndarray) -> float:
    """The drift score of `evaluation.video.drift` of a video [T, H, W, 3] of bytes."""
    curve = BinnedMean(len(SCALARS) + CELLS * CELLS * ORIENTATIONS)
    every = round(FPS / PICTURES_A_SECOND)
    for index in range(0, len(video), every):
        curve.add(index / FPS, describe(video[index]))
    return drift_scores(*curve.read())["drift"]
