"""The judge: what a video shows, read off its pixels with fixed rules, and how that compares with the truth.

Videos are [frames, HEIGHT, VIEW, 3] uint8. Every measure is first to be run on true videos: what it
misses there is its own error. Motion, places and returns are read off one frame a latent frame, at
the estimated camera position, so a video whose camera drifts is judged by the places it shows. The subject
runs through everything in front: places are compared above the rows that it runs in.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tinyworld.captions import Meaning
from tinyworld.plans import WINDOW
from tinyworld.render import LANE
from tinyworld.sight import Sighting, runs, setting, shift, sightings, subjects
from tinyworld.world import FPS, ONE_LATENT, PACES, TRAVEL, VIEW, Scene, Shot, pixel_frames

VERSION = 3  # of the measures: results of another one are not compared with these
SLOW, STEP = (ONE_LATENT * pick(PACES) for pick in (min, max))  # pixels that the camera goes in one latent frame
NEAR_END = 3 * STEP  # pixels: what a block uncovers at most, and how far from a scene's end the camera may turn
FIRST_PASS = TRAVEL // 96 * 16 + 2  # latent frames to the far end at the least: spells of 8 at either pace, 96 pixels
WHOLE = 18  # pixels from the centre to the side of the widest object


# The caption


def verdict(video: np.ndarray, meaning: Meaning, seconds: float = 3.0) -> dict[str, bool]:
    """Whether the first seconds show the caption's ground, time of day, subject and first object.

    The object must be sighted in at least 3 of every second frame; in every shot of the world its first
    object lies wholly in the view for as long. `object's colour` asks for its colour in any shape. The subject
    must be seen in three quarters of these frames.
    """
    first = video[: round(seconds * FPS)]
    ground, time = setting(first)
    seen = [sightings(frame, time) for frame in first[::2]]
    return {
        "ground": ground == meaning.ground,
        "time": time == meaning.time,
        "subject": subjects(first[::2], time).count(meaning.subject) >= 0.75 * len(first[::2]),
        "object": _shown(seen, meaning.objects[0], least=3),
        "object's colour": _shown(seen, (meaning.objects[0][0], None), least=3),
    }


def objects_in_first_pass(video: np.ndarray, scene: Scene, shot: Shot) -> tuple[float, float]:
    """Shares of the captioned objects seen on the first way over the scene: (in colour and kind, in colour).

    An object counts as seen with 2 sightings, one frame a latent frame; their order does not matter. Due are
    those that lie wholly in the view for as long by the truth: all of them once the far end is reached.
    """
    journey = Journey(video[: pixel_frames(FIRST_PASS)])
    camera = shot.camera(len(video))[: pixel_frames(FIRST_PASS) : ONE_LATENT]
    whole = [(s, np.sum((camera + WHOLE <= s.x) & (s.x <= camera + VIEW - WHOLE))) for s in scene.sprites]
    due = [sprite for sprite, frames in whole if frames >= 2]
    looks = [_shown(journey.seen, (sprite.colour, sprite.kind), least=2) for sprite in due]
    colours = [_shown(journey.seen, (sprite.colour, None), least=2) for sprite in due]
    return (float(np.mean(looks)), float(np.mean(colours))) if due else (0.0, 0.0)


# The camera and what comes back


@dataclass(frozen=True)
class Journey:
    """A video as a way past places, at one frame a latent frame (the first, then the last of each)."""

    video: np.ndarray

    @cached_property
    def frames(self) -> np.ndarray:
        """[latents, HEIGHT, VIEW, 3]"""
        return self.video[::ONE_LATENT]

    @cached_property
    def steps(self) -> np.ndarray:
        """[latents - 1] pixels that the camera moved from each frame to the next, at most 14 either way."""
        return np.array([shift(a, b)[0] for a, b in zip(self.frames[:-1], self.frames[1:], strict=True)], int)

    @cached_property
    def track(self) -> np.ndarray:
        """[latents] the camera's position in pixels relative to the first frame: the steps, summed up."""
        return np.concatenate([[0], self.steps.cumsum()]).astype(int)

    @cached_property
    def seen(self) -> list[list[Sighting]]:
        """Each frame's objects, under the light of the video's first second."""
        _, time = setting(self.video[:FPS])
        return [sightings(frame, time) for frame in self.frames]

    @cached_property
    def returns(self) -> list[tuple[int, int]]:
        """(first, later): frames of one place that came back after it had left the window.

        `first` is the earliest frame within half a step of the later one's position. In between, the middle of
        the later frame's view must have been out of view for at least as many latent frames on end as the
        window holds, and since it came back never so long again.
        """
        pairs = []
        for later in range(WINDOW, len(self.track)):
            away = np.abs(self.track[: later + 1] - self.track[later])
            visits = _visits(away <= VIEW // 2)
            if len(visits) > 1 and away[: visits[-1].start].min() <= STEP // 2:
                pairs.append((int(np.argmax(away <= STEP // 2)), later))
        return pairs

    def moves_as_trained(self, shot: Shot, tolerance: int = 1) -> np.ndarray:
        """[latents - 1] whether each step is one that the shot's camera may take there.

        It moves plausibly, on until it is within NEAR_END pixels of the scene's end, before or beyond it, and
        there back; start and direction are the shot's. Where it turns is the end from then on.
        """
        right, place, heading = [], shot.start, 1 if shot.direction == "right" else -1
        for step in self.steps:
            ahead = TRAVEL - place if heading > 0 else place
            inside = -NEAR_END <= place <= TRAVEL + NEAR_END
            if inside and ahead <= NEAR_END and step * heading < 0:
                place, heading = TRAVEL if heading > 0 else 0, -heading
                right.append(True)
            else:
                right.append(bool(inside and (step * heading > 0 or ahead <= NEAR_END)))
            place += step
        return self.moves_plausibly(tolerance) & np.array(right, bool)

    def moves_plausibly(self, tolerance: int = 1) -> np.ndarray:
        """[latents - 1] whether each step is one of this world's, wherever the camera should be.

        That is a pace between the slowest and the quickest either way, or any slower one in the one step in which
        the camera turns: the steps before and after it go opposite ways at such a pace. The first and the last step
        may be a turn.
        """
        full = (np.abs(self.steps) >= SLOW - tolerance) & (np.abs(self.steps) <= STEP + tolerance)
        way = np.where(full, np.sign(self.steps), 0)
        before, after = np.concatenate([[0], way[:-1]]), np.concatenate([way[1:], [0]])
        ends = np.arange(len(way)) % max(len(way) - 1, 1) == 0
        turn = (before * after == -1) | (ends & (before + after != 0))
        return full | (turn & (np.abs(self.steps) < STEP))

    def subject_kept(self, subject: str) -> float:
        """Share of the frames after the first pass that show this subject under the light of the first second.

        Of a video that ends before, the last frame is judged.
        """
        _, time = setting(self.video[:FPS])
        later = self.frames[FIRST_PASS:] if len(self.frames) > FIRST_PASS else self.frames[-1:]
        return subjects(later, time).count(subject) / len(later)

    def turns(self) -> int:
        """How often the camera's direction changes, steps without motion left out."""
        steps = self.steps[: len(self.steps) // 2 * 2].reshape(-1, 2).sum(1)
        return int(np.sum(np.diff(np.sign(steps[np.abs(steps) >= 6])) != 0))

    def revisits(self) -> dict[str, float | None]:
        """How like themselves places are when they come back.

        revisit error: mean absolute difference in levels (0 to 255) between the frames of each of the `returns`,
        aligned by the shift of at most 8 pixels at which they differ least. revisit PSNR: of the same in dB, at
        most 60. revisit consistency: 1 - error / the error of the same later frames against up to 3 frames of
        places of the first pass that share no column with them, aligned alike; 1 is the same picture, 0 no better
        than another place. came back: 1 if there are at least 4 returns. Without, a video has no
        error (None) and its consistency is 0.
        """
        errors, others, squares = [], [], []
        for first, later in self.returns:
            apart = np.abs(self.track[:FIRST_PASS] - self.track[later])
            strange = np.flatnonzero(apart >= VIEW)
            if len(strange):
                picked = strange[np.linspace(0, len(strange) - 1, min(3, len(strange))).astype(int)]
                others.append(np.mean([shift(self.frames[k], self.frames[later], STEP)[1] for k in picked]))
                by, error = shift(self.frames[first], self.frames[later], STEP)
                errors.append(error)
                squares.append(_square_error(self.frames[first], self.frames[later], by))
        if len(errors) < 4:
            return {"revisit error": None, "revisit PSNR": None, "revisit consistency": 0.0, "came back": 0.0}
        return {
            "revisit error": float(np.mean(errors)),
            "revisit PSNR": float(np.mean(np.minimum(60.0, 10 * np.log10(255**2 / np.maximum(squares, 1e-9))))),
            "revisit consistency": float(1 - np.mean(errors) / max(np.mean(others), 1e-9)),
            "came back": 1.0,
        }

    def objects_kept(self) -> tuple[int, int]:
        """(found again, due): returns of objects that the video itself showed in the first pass.

        An object is a colour and kind sighted at least twice within 12 pixels of one place of the track. It is due
        each time that its place comes back after at least a window out of view and the whole object is in view
        for 3 frames or more, and found again if at least 2 of these frames show it there.
        """
        kept = due = 0
        for look, place in self.objects():
            aside = np.abs(place - self.track - VIEW / 2)  # from the middle of the view
            for visit in _visits(aside <= VIEW / 2)[1:]:
                whole = [frame for frame in visit if aside[frame] <= VIEW / 2 - WHOLE]
                if len(whole) >= 3:
                    due += 1
                    kept += sum(self._shows(frame, look, place) for frame in whole) >= 2
        return kept, due

    def objects(self) -> list[tuple[tuple[str, str], float]]:
        """((colour, kind), place on the track) of each object sighted at least twice in the first pass."""
        found: list[tuple[tuple[str, str], list[float]]] = []
        for position, seen in zip(self.track[:FIRST_PASS], self.seen[:FIRST_PASS], strict=True):
            for s in seen:
                if s.kind is None:
                    continue
                look, place = (s.colour, s.kind), position + s.x
                known = next((p for name, p in found if name == look and abs(np.mean(p) - place) <= 12), None)
                if known is None:
                    found.append((look, [place]))
                else:
                    known.append(place)
        return [(look, float(np.mean(places))) for look, places in found if len(places) >= 2]

    def kept_in_view(self, gap: int = 4) -> tuple[int, int]:
        """(seen again, due): sightings that the track leaves in view, `gap` latent frames later."""
        kept = due = 0
        for k in range(0, len(self.frames) - gap, 2):
            for s in self.seen[k]:
                place = self.track[k] + s.x
                if s.kind and abs(place - self.track[k + gap] - VIEW / 2) <= VIEW / 2 - WHOLE - 4:
                    due += 1
                    kept += self._shows(k + gap, (s.colour, s.kind), place)
        return kept, due

    def _shows(self, frame: int, look: tuple[str, str], place: float) -> bool:
        position = self.track[frame]
        return any((s.colour, s.kind) == look and abs(position + s.x - place) <= 12 for s in self.seen[frame])


def _visits(in_view: np.ndarray) -> list[range]:
    """Stretches of frames in which a place is in view; absences shorter than the window do not end one."""
    return [range(*run) for run in runs(in_view, bridge=WINDOW - 1)]


def _shown(seen: list[list[Sighting]], thing: tuple[str, str | None], least: int) -> bool:
    """Whether at least `least` frames show a (colour, kind); kind None means any shape."""
    colour, kind = thing
    return sum(any(s.colour == colour and kind in (None, s.kind) for s in frame) for frame in seen) >= least


def _square_error(before: np.ndarray, after: np.ndarray, by: int) -> float:
    a, b = before[:LANE, max(by, 0) : VIEW + min(by, 0)], after[:LANE, max(-by, 0) : VIEW + min(-by, 0)]
    return float(np.square(a.astype(np.float32) - b).mean())
