"""A world that changes while the camera looks away: what was seen of it first is then no longer true."""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from tinyworld.world.film import Clip, film
from tinyworld.world.render import paint
from tinyworld.world.scene import CLIFF, VIEW, WIDTH, Scene, Sprite

APART = 36  # pixels between the middles of two objects at least
HALF_WIDTH = 20  # pixels from the middle of an object to where the soft lens has nothing of it


@dataclass(frozen=True)
class ChangedClip(Clip):
    """A clip whose scene is `later` from pixel frame `since` on; what differs is out of view then.

    Attributes:
        moved: the object that stands elsewhere since, as it stood before.
        place: pixels, where its middle is since.
    """

    later: Scene
    since: int
    moved: Sprite
    place: float

    @cached_property
    def video(self) -> np.ndarray:
        """[frames, HEIGHT, VIEW, 3] uint8."""
        before = film(paint(self.scene), self.scene, self.shot, self.frames)
        after = film(paint(self.later), self.later, self.shot, self.frames)
        return np.concatenate([before[: self.since], after[self.since :]])


def move_an_object(clip: Clip) -> ChangedClip:
    """The clip, but for one object that moves when the camera first turns: the one that can move the farthest unseen.

    It stays between its neighbours, so the caption remains true.
    """
    heading = clip.shot.heading(clip.frames)
    turned = np.flatnonzero(heading != heading[0])
    assert len(turned), "the clip ends before the camera turns"
    since = int(turned[0])
    view = clip.camera[since]
    sprites = clip.scene.sprites
    sides = [CLIFF - HALF_WIDTH, *sorted(sprite.x for sprite in sprites), WIDTH - CLIFF + HALF_WIDTH]
    farthest = 0.0
    for sprite in sprites:
        between = sides.index(sprite.x)
        for place in (sides[between - 1] + APART, sides[between + 1] - APART):
            hidden = all(x + HALF_WIDTH <= view or x - HALF_WIDTH >= view + VIEW for x in (sprite.x, place))
            if hidden and abs(place - sprite.x) > farthest:
                farthest = abs(place - sprite.x)
                moved, goes_to = sprite, float(place)
    assert farthest, "some object is out of view at each end of the scene"
    later = []
    for sprite in sprites:
        later.append(replace(sprite, x=goes_to) if sprite is moved else sprite)
    scene = replace(clip.scene, sprites=tuple(later))
    return ChangedClip(clip.scene, clip.shot, clip.frames, scene, since, moved, goes_to)
