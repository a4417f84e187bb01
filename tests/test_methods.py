"""Every method makes videos of any length, in any batch, from given blocks on, and with a bounded bank."""

import pytest
import torch
import yaml

from pipeline.backbones import METHODS
from pipeline.build import load
from pipeline.config import load_config
from pipeline.pipeline import Pipeline
from pipeline.samples import Sample
from tests.close import assert_close
from tests.miniature import ROUNDINGS, latentmem, make_family

FRAMES = 30  # past every window, and past the first choice of every rule
SAMPLES = [Sample("a red house", 0), Sample("a blue tree at night", 1)]


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    root = tmp_path_factory.mktemp("family")
    return root, make_family(root)


def pipeline_of(family, method: str, **settings) -> Pipeline:
    """The miniature with a method, in a small window where the method does not say otherwise."""
    root, common = family
    shortened = {"num_output_frames": FRAMES, "denoising_step_list": [1000]}
    kwargs = latentmem(root) if METHODS[method].config == "latentmem" else {"local_attn_size": 12}
    for change in METHODS[method].settings:
        key, value = change.removeprefix("model_kwargs.").split("=")
        kwargs[key] = yaml.safe_load(value)
    return load(load_config(overrides=common | shortened | {"model_kwargs": kwargs} | settings))


def made(pipeline: Pipeline, *samples: Sample) -> torch.Tensor:
    return torch.cat([block.latents for block in pipeline.blocks(list(samples))], dim=1)


@pytest.mark.parametrize("method", METHODS)
def test_a_method_makes_any_length_in_any_batch_from_given_blocks_on_with_a_bounded_bank(family, method):
    pipeline = pipeline_of(family, method)
    whole = made(pipeline, *SAMPLES)
    generation = pipeline.start(SAMPLES[1])
    blocks = []
    while generation.start < FRAMES:
        given = whole[1:, generation.coming.start : generation.coming.stop]
        blocks.append(generation.give(given) if generation.start < 18 else generation.step())
    alone = torch.cat([block.latents for block in blocks], dim=1)
    assert_close(alone, whole[1:], roundings=ROUNDINGS)
    first = blocks[0].plan
    assert all(len(block.plan.pieces()) <= len(pipeline.policy.largest) for block in blocks)
    assert first.attended() == tuple(range(pipeline.policy.block))
    if pipeline.policy.fetched:
        capacity = 6 if pipeline.policy.retrieves else len(pipeline.policy.fetched)
        bounded = pipeline_of(family, method, bank={"capacity": capacity})
        generation = bounded.start(SAMPLES)
        while generation.start < FRAMES:
            latents = generation.step().latents
        assert latents.isfinite().all()
        assert len(generation.cache.bank.frames) <= capacity
