"""The contexts that the backbone is trained on: the two of a rollout, and their neighbourhood."""

import numpy as np

from tinyworld.context import BLOCK, BlockPlan
from tinyworld.settings import BackboneSettings

WINDOW = 18  # latent frames of context in all, the block's own included
SINK = 1
MEMORY = 6


def draw_sequence(settings: BackboneSettings, rng: np.random.Generator) -> np.ndarray:
    """Frame indices [frames] of a training sequence: a video's first block, then a later stretch of it.

    Half of the sequences have no gap. Long gaps give the distance of the sink that late blocks see.
    """
    later = settings.frames - BLOCK
    start = BLOCK
    if rng.random() < 0.5:
        start = BLOCK * int(rng.integers(WINDOW // BLOCK, settings.max_start // BLOCK))
    return np.concatenate([np.arange(BLOCK), start + np.arange(later)])


def native(frames: np.ndarray, batch: int) -> list[BlockPlan]:
    """[sink | local] at absolute positions, for every block of a sequence of frame indices."""
    plans = []
    for start in range(0, len(frames), BLOCK):
        local = _local(frames, start, WINDOW - SINK - BLOCK)
        context = np.array([*range(min(SINK, start)), *local], dtype=np.int64)
        positions = (*frames[context], *frames[start : start + BLOCK])
        plans.append(BlockPlan(np.tile(context, (batch, 1)), tuple(int(p) for p in positions)))
    return plans


def latentmem(
    frames: np.ndarray, camera: np.ndarray, settings: BackboneSettings, rng: np.random.Generator
) -> list[BlockPlan]:
    """[sink | memory | local] at window positions.

    Memory frames are drawn among those before the local ones: most of them from near the place that the
    block will show, by the camera's truth, the others from anywhere. Retrieval asks with what was last
    seen, so that place is missed by some pixels: where the camera goes must not follow from the memory.
    A step draws once how many there are and whether local frames fill the unused slots, or are left out.

    Args:
        frames: [F] indices into the video.
        camera: [B, F] pixels.
    """
    wanted = int(rng.integers(0, settings.most_memory + 1))
    kind, spare = rng.random(), WINDOW - SINK - MEMORY - BLOCK
    local_frames = spare
    if kind < settings.no_local:
        local_frames, wanted = 0, max(wanted, 1)
    elif kind < settings.no_local + settings.wide_local:
        local_frames = WINDOW - SINK - BLOCK - wanted
    plans = []
    for start in range(0, len(frames), BLOCK):
        full = frames[start] >= WINDOW  # before, nothing was evicted and the window has not moved
        local = _local(frames, start, local_frames if full else spare)
        sink = range(min(SINK, start))
        older = np.arange(SINK, local[0] if local else start)
        memory = wanted if full and len(older) >= wanted else 0
        places = [_recall(camera[sample], older, start, memory, settings, rng) for sample in range(len(camera))]
        context = np.stack([np.array([*sink, *place, *local], dtype=np.int64) for place in places])
        shift = max(int(frames[start]) + BLOCK - WINDOW, 0)
        near = [int(frame) - shift for frame in (*frames[local], *frames[start : start + BLOCK])]
        plans.append(BlockPlan(context, (*sink, *(0,) * memory, *near)))
    return plans


def _local(frames: np.ndarray, start: int, count: int) -> list[int]:
    """The latest `count` frames before `start` that really precede it, the sink left out."""
    found = []
    while len(found) < count and start - len(found) > SINK:
        index = start - len(found) - 1
        if frames[start] - frames[index] != len(found) + 1:
            break  # a gap in the sequence
        found.append(index)
    return found[::-1]


def _recall(
    camera: np.ndarray, older: np.ndarray, start: int, count: int, settings: BackboneSettings, rng: np.random.Generator
) -> np.ndarray:
    """`count` of the `older` frames, nearest to about the block's place but for some jitter, or at random."""
    if not count:
        return older[:0]
    place = camera[start : start + BLOCK].mean() + rng.uniform(-1, 1) * settings.astray
    distance = np.abs(camera[older] - place) + rng.uniform(0, 24, len(older))
    ranked = older[np.argsort(distance)]
    chosen = np.where(rng.random(count) < settings.near_memory, ranked[:count], -1)
    rest = rng.permutation([frame for frame in older if frame not in chosen])
    chosen[chosen < 0] = rest[: (chosen < 0).sum()]
    return chosen
