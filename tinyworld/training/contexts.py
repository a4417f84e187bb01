"""The contexts that the backbone is trained on: the two of a rollout, and their neighbourhood."""

from collections.abc import Sequence

import numpy as np

from pipeline.context import ContextPolicy
from tinyworld.training.settings import BackboneSettings
from tinyworld.training.teacher_forcing import BlockPlan
from tinyworld.world.scene import VIEW, WIDTH

JITTER = 24  # pixels by which the distances are blurred that memory frames are ranked by
COLUMN = 8  # pixels of a latent's column


def draw_sequence(settings: BackboneSettings, policy: ContextPolicy, rng: np.random.Generator) -> np.ndarray:
    """Frame indices [frames] of a training sequence: a video's first block, then a later stretch of it.

    Half of the sequences have no gap. Long gaps give the distance of the sink that late blocks see.
    """
    block = policy.block
    start = block
    if rng.random() < 0.5:
        start = block * int(rng.integers(policy.local_attn_size // block, settings.max_start // block))
    later = start + np.arange(settings.frames - block)
    return np.concatenate([np.arange(block), later])


def native(frames: np.ndarray, policy: ContextPolicy, batch: int) -> list[BlockPlan]:
    """[sink | local] at absolute positions, for every block of a sequence of frame indices."""
    plans = []
    for start in range(0, len(frames), policy.block):
        local = _local(frames, start, policy, policy.local_attn_size - policy.sink_size - policy.block)
        context = np.array([*range(min(policy.sink_size, start)), *local], dtype=np.int64)
        attended = np.concatenate([frames[context], frames[start : start + policy.block]])
        plans.append(BlockPlan(np.tile(context, (batch, 1)), tuple(attended.tolist())))
    return plans


def latentmem(
    frames: np.ndarray, camera: np.ndarray, policy: ContextPolicy, settings: BackboneSettings, rng: np.random.Generator
) -> list[BlockPlan]:
    """[sink | memory | local] at window positions.

    Memory frames are drawn among those before the local ones: most of them from near the place that the
    block will show, by the camera's truth, the others from anywhere. Retrieval asks with what was last
    seen, so that place is missed by some pixels: where the camera goes must not follow from the memory.
    A step draws once how many there are and whether local frames fill the unused slots, or are left out.
    For a share of the blocks they are those that show what the block uncovers, for another they show none of it.

    Args:
        frames: [F] indices into the video.
        camera: [B, F] pixels.
    """
    wanted = int(rng.integers(0, settings.most_memory + 1))
    if wanted:
        wanted = min(max(wanted, settings.least_memory), settings.most_memory)
    variant = rng.random()
    beside_memory = policy.local_attn_size - policy.sink_size - policy.memory_size - policy.block
    local_frames = beside_memory
    if variant < settings.no_local:
        local_frames = 0
        wanted = max(wanted, 1)
    elif variant < settings.no_local + settings.wide_local:
        local_frames = policy.local_attn_size - policy.sink_size - policy.block - wanted
    any_sink = rng.random() < settings.other_sink
    placed = rng.random() < settings.placed_memory
    plans = []
    for start in range(0, len(frames), policy.block):
        full = frames[start] >= policy.local_attn_size  # before, nothing was evicted and the window has not moved
        local = _local(frames, start, policy, local_frames if full else beside_memory)
        sink = np.arange(min(policy.sink_size, start))
        older = np.arange(policy.sink_size, local[0] if local else start)
        memory = wanted if full and len(older) >= wanted + len(sink) else 0
        contexts, strangers = [], []
        for way in camera:
            free = older
            first = sink
            if any_sink and memory:
                first = np.sort(rng.choice(older, len(sink), replace=False))
                free = np.setdiff1d(older, first)
            remembered = free[:0]
            if memory:
                new = _span(way, start, policy.block) & ~_shown(way, local)
                remembered = _remember(way, free, way[start : start + policy.block].mean(), new, memory, settings, rng)
            contexts.append(np.array([*first, *remembered, *local], dtype=np.int64))
            is_strange = settings.strange_memory > 0 and rng.random() < settings.strange_memory
            strangers.append([*[False] * len(first), *[is_strange] * memory, *[False] * len(local)])
        shift = max(int(frames[start]) + policy.block - policy.local_attn_size, 0)
        near = np.concatenate([frames[local], frames[start : start + policy.block]]) - shift
        first_index, step = (policy.sink_size, 1) if placed else (0, 0)
        indices = first_index + step * np.arange(memory)
        positions = (*sink.tolist(), *indices.tolist(), *near.tolist())
        strange = np.array(strangers) if np.any(strangers) else None
        plans.append(BlockPlan(np.stack(contexts), positions, strange))
    return plans


def recallable(plans: list[BlockPlan], camera: np.ndarray) -> np.ndarray:
    """[B, F, columns] which latent columns the frames before a block leave out, and its sink or memory shows.

    Args:
        camera: [B, F] pixels.
    """
    columns = np.zeros((*camera.shape, VIEW // COLUMN), bool)
    middles = np.arange(0, VIEW, COLUMN) + COLUMN // 2
    for number, plan in enumerate(plans):
        start = number * plan.own_frames
        nearby = plan.local_frames(start)
        for sample, way in enumerate(camera):
            context = plan.own_context(sample)
            remembered, local = np.split(context, [len(context) - nearby])
            only_remembered = _shown(way, remembered) & ~_shown(way, local)
            for frame in range(start, start + plan.own_frames):
                columns[sample, frame] = only_remembered[np.round(way[frame] + middles).astype(int)]
    return columns


def _span(camera: np.ndarray, start: int, count: int) -> np.ndarray:
    """[WIDTH] which columns of the scene so many frames show."""
    return _shown(camera, np.arange(start, start + count))


def _shown(camera: np.ndarray, frames: Sequence[int]) -> np.ndarray:
    """[WIDTH] which columns of the scene some of these frames show."""
    shown = np.zeros(WIDTH, bool)
    for frame in frames:
        left = round(float(camera[frame]))
        shown[left : left + VIEW] = True
    return shown


def _local(frames: np.ndarray, start: int, policy: ContextPolicy, count: int) -> list[int]:
    """The latest `count` frames before `start` that really precede it, the sink left out."""
    found = []
    while len(found) < count and start - len(found) > policy.sink_size:
        index = start - len(found) - 1
        if frames[start] - frames[index] != len(found) + 1:
            break  # a gap in the sequence
        found.append(index)
    return found[::-1]


def _remember(
    camera: np.ndarray,
    older: np.ndarray,
    place: float,
    new: np.ndarray,
    count: int,
    settings: BackboneSettings,
    rng: np.random.Generator,
) -> np.ndarray:
    """`count` of the `older` frames: most are nearest to about the `place` but for some jitter, others at random.

    Args:
        camera: [F] pixels.
        older: indices into it.
        new: [WIDTH] which columns of the scene the block uncovers.
    """
    kind = rng.random()
    shows = np.array([new[round(left) : round(left) + VIEW].sum() for left in camera[older].tolist()])
    blurred = np.abs(camera[older] - place) + rng.uniform(0, JITTER, len(older))
    if kind < settings.wrong_memory:
        return older[np.lexsort((-blurred, shows))][:count]
    if kind < settings.wrong_memory + settings.covering_memory and shows.any():
        shows_little = shows < shows.max() / 2
        return older[np.argsort(blurred + 2 * VIEW * shows_little)][:count]
    place = place + rng.uniform(-1, 1) * settings.astray
    distance = np.abs(camera[older] - place) + rng.uniform(0, JITTER, len(older))
    ranked = older[np.argsort(distance)]
    chosen = np.where(rng.random(count) < settings.near_memory, ranked[:count], -1)
    rest = rng.permutation([frame for frame in older if frame not in chosen])
    chosen[chosen < 0] = rest[: (chosen < 0).sum()]
    return chosen
