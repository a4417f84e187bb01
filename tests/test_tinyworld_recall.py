"""tinyworld's levers of recall: which memory a block is shown, where attention is taught to look, what is trained."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.test_tinyworld_training import LATENTMEM, TINY
from tinyworld.training import backbone, contexts, fewstep
from tinyworld.training.backbone import Backbone
from tinyworld.training.corpus import Corpus
from tinyworld.training.lookup import Lookup
from tinyworld.training.settings import (
    BackboneSettings,
)
from tinyworld.training.teacher_forcing import BlockPlan, TeacherForcing


def test_memory_can_be_drawn_to_show_what_a_block_uncovers_or_none_of_it_and_those_columns_are_known():
    there_and_back = 184 - np.abs(8 * np.arange(36) - 184)  # 8 pixels a frame to 184, and back
    frames, camera = np.arange(36), there_and_back[None].astype(float)
    shares = {}
    for name in ("covering_memory", "wrong_memory"):
        settings = dataclasses.replace(TINY, no_local=0.0, wide_local=0.0, most_memory=6, **{name: 1.0})
        shown = []
        for seed in range(20):
            plans = contexts.latentmem(frames, camera, LATENTMEM, settings, np.random.default_rng(seed))
            if plans[-1].context.shape[1] == 15:  # all six memory frames were drawn
                shown.append(contexts.recallable(plans, camera)[0, 30:33])  # on the way back
        shares[name] = np.mean(shown)
    # this block's frames uncover one, two and three of their 12 columns
    assert shares["covering_memory"] == 2 / 12
    assert shares["wrong_memory"] == 0


def test_memory_of_another_scene_is_the_next_sequences_and_nothing_is_recalled_by_it():
    there_and_back = 184 - np.abs(8 * np.arange(36) - 184)
    frames, camera = np.arange(36), np.stack([there_and_back, there_and_back]).astype(float)
    settings = dataclasses.replace(
        TINY,
        no_local=0.0,
        wide_local=0.0,
        most_memory=6,
        least_memory=6,
        covering_memory=1.0,
        strange_memory=1.0,
        batch=2,
    )
    plans = contexts.latentmem(frames, camera, LATENTMEM, settings, np.random.default_rng(1))
    plan = plans[-1]
    assert plan.strange.tolist() == [[False] + [True] * 6 + [False] * 8] * 2
    assert not contexts.recallable(plans, camera)[:, 30:33].any()  # the sink does not show what this block uncovers
    context = TeacherForcing(plans, 0, 1, 6, 6, torch.device("cpu"))
    keys = context._gather(torch.arange(2.0).view(2, 1, 1, 1, 1).expand(2, len(plans), 18, 1, 6))
    of_frames = keys[:, -1, ::6, 0, 0]
    assert of_frames.tolist() == [[0] + [1] * 6 + [0] * 8, [1] + [0] * 6 + [1] * 8]
    lookup = Lookup([(0, 0)], camera, context)
    assert not lookup.right[:, -1, :, 6:42].any()


def test_a_step_with_memory_has_at_least_so_many_frames_of_it():
    settings = dataclasses.replace(TINY, no_local=0.0, wide_local=0.0, least_memory=5)
    counts = set()
    for seed in range(30):
        plans = contexts.latentmem(np.arange(36), np.zeros((1, 36)), LATENTMEM, settings, np.random.default_rng(seed))
        counts.add(plans[-1].context.shape[1] - 9)  # beside the sink and the local frames
    assert counts == {0, 5, 6}


def two_steps(invented: float = 0.0, **levers: float) -> list[float]:
    """Losses of two latentmem steps of a small backbone, with these settings."""
    torch.manual_seed(0)
    plain = dataclasses.replace(TINY, kinds=[0.0, 0.0, 1.0], batch=1, copies=1, no_local=1.0, max_start=24)
    settings = dataclasses.replace(plain, **levers)
    camera = np.abs((8 * np.arange(48) + 192) % 384 - 192)[None].astype(float)
    latents = torch.randn(1, 48, 4, 8, 12)
    corpus = Corpus(latents, camera, np.zeros((1, 48, 3), np.float32), ["a red house"])
    model = Backbone(settings, 4)
    torch.nn.init.normal_(model.model.head.head.weight, std=0.1)
    losses = []
    for step in range(2):
        rng = np.random.default_rng(step)
        _, batch = backbone.draw_batch(settings, LATENTMEM, [corpus, corpus], rng)
        context = batch.clean
        if invented:
            context = fewstep.invented_context(model, settings, batch, context, rng)
        loss = backbone.teacher_forcing_loss(model, settings, batch, context, rng)
        loss.backward()
        losses.append(loss.item())
    return losses


LEVERS = [
    {"covering_memory": 1.0}, {"wrong_memory": 1.0}, {"recall_weight": 8.0}, {"other_sink": 1.0},
    {"placed_memory": 1.0}, {"frames": 48}, {"invented": 1.0},
    {"lookup": 1.0, "lookup_heads": ["1.0"]},
]  # fmt: skip


def test_attention_is_taught_to_find_the_columns_of_the_memory_that_show_the_same_place():
    camera = np.array([[0.0, 32, 40, 50, 64, 64, 0, 0, 0]])  # tokens of 16 pixels
    plan = BlockPlan(np.array([[0, 1, 5]]), (0, 0, 14, 15, 16, 17))  # sink and memory, one local frame, a block of 3
    none = BlockPlan(np.zeros((1, 0), np.int64), (0, 1, 2))
    context = TeacherForcing([none, none, plan], 1, 2, 6, 6, torch.device("cpu"))
    lookup = Lookup([(0, 0)], camera, context)
    assert not lookup.right[0, :2].any()
    right = lookup.right[0, 2].reshape(3, 2, 6, 6, 2, 6)  # own frame, row, column, frame attended to, row, column
    assert right[0, 1, 3].nonzero().tolist() == [
        [0, 1, 3],
        [1, 1, 1],
    ]  # 48 to 64 pixels in the sink and, 32 on, in memory
    assert right[0, 1, 0].nonzero().tolist() == [[0, 1, 0]]  # the memory does not show it
    assert lookup.in_view[0, 2].reshape(3, 2, 6)[0, 0].tolist() == [False] * 4 + [True] * 2  # the local frame, 64 on

    def surprise(found: torch.Tensor) -> float:
        lookup.surprise, lookup.tokens = ([], []), ([], [])
        lookup.judge(1000 * found.float().expand(6, 36, 72), torch.eye(72).expand(6, 72, 72))
        return float(lookup.error())

    assert surprise(lookup.right[0, 2]) == pytest.approx(0, abs=1e-4)
    assert surprise(lookup.right[0, 2].roll(1, -1)) > 100
    assert surprise(torch.zeros(36, 72)) > 2  # equal attention to everything, log(72 / 2) for most tokens


def test_two_steps_with_each_lever_differ_from_two_steps_without():
    losses = [two_steps()]
    for lever in LEVERS:
        losses.append(two_steps(**lever))
    assert np.isfinite(losses).all()
    assert len({tuple(pair) for pair in losses}) == 1 + len(LEVERS)


def drawn_batch(**levers: float) -> tuple[BackboneSettings, backbone.Batch]:
    """A batch of latentmem, whose camera comes back within it."""
    plain = dataclasses.replace(TINY, kinds=[0.0, 0.0, 1.0], batch=1, copies=1, frames=48, max_start=24, ahead=0.0)
    settings = dataclasses.replace(plain, **levers)
    camera = np.abs((8 * np.arange(48) + 192) % 384 - 192)[None].astype(float)
    corpus = Corpus(torch.randn(1, 48, 4, 8, 12), camera, np.zeros((1, 48, 3), np.float32), ["a red house"])
    _, batch = backbone.draw_batch(settings, LATENTMEM, [corpus, corpus], np.random.default_rng(1))
    return settings, batch


def test_only_the_blocks_that_are_taught_count():
    torch.manual_seed(0)
    settings, batch = drawn_batch(covering_memory=1.0)
    model = Backbone(settings, 4)
    torch.nn.init.normal_(model.model.head.head.weight, std=0.1)
    taught = batch.recalls()
    assert 0 < taught.sum() < len(taught)

    def loss(**given) -> float:
        return backbone.teacher_forcing_loss(
            model, settings, batch, batch.clean, np.random.default_rng(0), **given
        ).item()

    parts = [loss(taught=taught) * taught.sum(), loss(taught=~taught) * (~taught).sum()]
    assert sum(parts) / len(taught) == pytest.approx(loss(), rel=1e-5)
    assert loss(taught=taught) != pytest.approx(loss(), rel=1e-3)
