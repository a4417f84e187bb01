"""Every method makes videos of any length, in any batch, from given blocks on, and with a bounded bank."""

import json

import pytest
import torch
import yaml

from benchmarks.methods import MethodsConfig, measure, table
from docs import method_rows
from pipeline.backbones import METHODS
from pipeline.build import load
from pipeline.config import load_config
from pipeline.pipeline import Pipeline
from pipeline.samples import Sample
from tests.close import assert_close
from tests.miniature import ROUNDINGS, latentmem, make_family
from tinyworld.benchmark import CONFIG, BenchmarkSettings, with_methods
from tinyworld.league import LEAGUES, WINDOW
from utils.errors import UserError
from utils.settings import load_settings

FRAMES = 30  # past every window, and past the first choice of every rule
SAMPLES = [Sample("a red house", 0), Sample("a blue tree at night", 1)]


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    root = tmp_path_factory.mktemp("family")
    return root, make_family(root)


def pipeline_of(family, method: str, **settings) -> Pipeline:
    """The miniature with a method, in a small window where the method does not say otherwise."""
    root, common = family
    steps = [1000, 500] if method == "latentmem_draft" else [1000]  # the first of two makes the draft
    shortened = {"num_output_frames": FRAMES, "denoising_step_list": steps}
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


@pytest.mark.parametrize("league", [name for name in LEAGUES if name != "none"])
def test_methods_are_rows_of_the_benchmark_in_one_family_of_hypotheses(league):
    settings = with_methods(load_settings(BenchmarkSettings, CONFIG, [f"methods={league}", "only=[memrope]"]))
    assert list(settings.chosen()) == ["memrope"]
    policies = {name: settings.run_config(name).policy() for name in settings.rows}
    (family,) = settings.hypotheses.values()
    assert len(family) == len(settings.league) * (2 * (len(policies) - 1) - 1)  # the two baselines are compared once
    if league == "one_window":
        assert {policy.local_attn_size for policy in policies.values()} == {WINDOW}


def test_a_merge_that_the_policy_has_no_place_for_is_refused_with_what_works(family):
    with pytest.raises(UserError, match="merge ema is not for policy rolling_sink; use policy native or latentmem"):
        pipeline_of(family, "rolling_sink", model_kwargs={"policy": "rolling_sink", "merge": "ema"})


@pytest.mark.parametrize(
    "rows, words",
    [([[0], [1], [2]], "has 2 layers of 4 heads"), ([[0], [4]], "heads up to 4"), ([["a"], []], "no groups")],
)
def test_head_lists_of_another_model_are_refused(family, tmp_path, rows, words):
    path = tmp_path / "lists.json"
    path.write_text(json.dumps({"groups": {"near": {"sees": {"local": 1}, "heads": rows}}}))
    with pytest.raises(UserError, match=words):
        pipeline_of(family, "native", model_kwargs={"head_groups": str(path)})


def test_costs_are_planned_for_every_method_and_measured_for_those_that_run():
    plan = measure(MethodsConfig(planned=True))
    assert all(name in table(plan) for name in METHODS)
    seen = {name: figures["tflop"] for name, figures in plan["methods"].items()}
    assert seen["infinity_rope"] < seen["native"] < seen["deep_sink"]
    run = measure(MethodsConfig(methods=["memrope"], blocks=2, steps=1))
    assert run["methods"]["memrope"]["block_s"] > 0


def test_the_drawn_rows_are_those_of_the_methods():
    assert method_rows.PICTURE.read_text(encoding="utf-8") == method_rows.draw(), "run python -m docs.method_rows"
