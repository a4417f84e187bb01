"""Whether a video shows the caption's objects, and shows an object again where it was."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tinyworld.judging.detect import Detection, detect_objects, ground_and_time
from tinyworld.judging.revisits import visits
from tinyworld.world.scene import FIRST_PASS, FPS, ONE_LATENT, VIEW, Scene, Shot, pixel_frames

HALF_WIDTH = 18  # pixels from the centre to the side of the widest object
SAME_SPOT = 12  # pixels between two sightings of one object
Detections = Sequence[Sequence[Detection]]  # for each frame, what it shows


@dataclass(frozen=True)
class Count:
    """How often something was found, of how often it should have been."""

    found: int
    due: int

    @property
    def share(self) -> float | None:
        """None where nothing was due."""
        return self.found / self.due if self.due else None


@dataclass(frozen=True)
class Landmark:
    """An object that a video itself has shown, and its centre on the camera's track, in pixels of the first view."""

    colour: str
    kind: str
    place: float


def detect_all(video: np.ndarray) -> list[list[Detection]]:
    """The objects in one frame a latent frame of [frames, HEIGHT, VIEW, 3], under the light of the first second."""
    _, time = ground_and_time(video[:FPS])
    return [detect_objects(frame, time) for frame in video[::ONE_LATENT]]


def frames_with(detections: Detections, colour: str, kind: str | None = None) -> int:
    """How many frames show something in this colour, and of this kind where one is asked for."""
    count = 0
    for seen in detections:
        fitting = [one for one in seen if one.colour == colour and kind in (None, one.kind)]
        count += bool(fitting)
    return count


def objects_in_first_pass(detections: Detections, scene: Scene, shot: Shot) -> tuple[float, float]:
    """Shares of the captioned objects seen on the first way over the scene: (in colour and kind, in colour).

    An object counts as seen with 2 sightings, one frame a latent frame; their order does not matter. Due are
    those that lie wholly in the view for as long by the truth: all of them once the far end is reached.
    """
    first_pass = detections[:FIRST_PASS]
    camera = shot.camera(pixel_frames(len(first_pass)))[::ONE_LATENT]
    in_look, in_colour = [], []
    for sprite in scene.sprites:
        wholly_in_view = (camera + HALF_WIDTH <= sprite.x) & (sprite.x <= camera + VIEW - HALF_WIDTH)
        if wholly_in_view.sum() >= 2:
            in_look.append(frames_with(first_pass, sprite.colour, sprite.kind) >= 2)
            in_colour.append(frames_with(first_pass, sprite.colour) >= 2)
    if not in_look:
        return 0.0, 0.0
    return float(np.mean(in_look)), float(np.mean(in_colour))


def objects_kept(detections: Detections, positions: np.ndarray, window: int) -> Count:
    """Of the objects that the video itself showed in the first pass, how many are there when their place returns.

    A landmark is due each time that its place comes back after at least a window out of view and the whole object is
    in view for 3 latent frames or more; it is found if at least 2 of these frames show it there.

    Args:
        positions: [latents] of the camera.
        window: latent frames that the context holds.
    """
    found = 0
    due = 0
    for landmark in find_landmarks(detections[:FIRST_PASS], positions[:FIRST_PASS]):
        from_the_middle = np.abs(landmark.place - positions - VIEW / 2)
        for visit in visits(from_the_middle <= VIEW / 2, window)[1:]:
            whole = [frame for frame in visit if from_the_middle[frame] <= VIEW / 2 - HALF_WIDTH]
            if len(whole) < 3:
                continue
            due += 1
            showing = [frame for frame in whole if _shows(detections[frame], positions[frame], landmark)]
            found += len(showing) >= 2
    return Count(found, due)


def find_landmarks(detections: Detections, positions: np.ndarray) -> list[Landmark]:
    """The objects sighted at least twice within SAME_SPOT pixels of one place; theirs is the mean of these places."""
    sightings: list[tuple[tuple[str, str], list[float]]] = []  # (colour, kind), places
    for position, seen in zip(positions, detections, strict=True):
        for one in seen:
            if one.kind is None:
                continue
            look = (one.colour, one.kind)
            place = position + one.x
            known = _places_near(sightings, look, place)
            if known is None:
                sightings.append((look, [place]))
            else:
                known.append(place)
    landmarks = []
    for (colour, kind), places in sightings:
        if len(places) >= 2:
            landmarks.append(Landmark(colour, kind, float(np.mean(places))))
    return landmarks


def objects_kept_in_view(detections: Detections, positions: np.ndarray, gap: int = 4) -> Count:
    """Of the objects that the camera leaves in view, how many are still there `gap` latent frames later."""
    found = 0
    due = 0
    for frame in range(0, len(detections) - gap, 2):
        later = frame + gap
        for one in detections[frame]:
            if one.kind is None:
                continue
            landmark = Landmark(one.colour, one.kind, positions[frame] + one.x)
            from_the_middle = abs(landmark.place - positions[later] - VIEW / 2)
            if from_the_middle <= VIEW / 2 - HALF_WIDTH - 4:
                due += 1
                found += _shows(detections[later], positions[later], landmark)
    return Count(found, due)


def _places_near(
    sightings: list[tuple[tuple[str, str], list[float]]], look: tuple[str, str], place: float
) -> list[float] | None:
    """The places of the first known object of this look that is near this place."""
    for known_look, places in sightings:
        if known_look == look and abs(np.mean(places) - place) <= SAME_SPOT:
            return places
    return None


def _shows(seen: Sequence[Detection], position: int, landmark: Landmark) -> bool:
    """Whether a frame at this position of the camera shows the landmark at its place."""
    for one in seen:
        same_look = (one.colour, one.kind) == (landmark.colour, landmark.kind)
        if same_look and abs(position + one.x - landmark.place) <= SAME_SPOT:
            return True
    return False
