"""A forward that is replayed equals one that is made anew, whatever happens between two of them."""

from contextlib import contextmanager

import pytest
import torch

from pipeline.build import load
from pipeline.config import load_config
from pipeline.cuda_graph import can_capture
from pipeline.samples import Sample
from tests.graph_on_cpu import Graph, capturing
from tests.miniature import latentmem
from utils.errors import UserError

PROMPTS = ["a red house", "a blue tree at night"]


@pytest.fixture(autouse=True)
def captured(monkeypatch):
    """The graphs that were captured."""
    made = []
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **how: made.append(graph) or capturing(graph, **how))
    return made


def make(settings: dict, samples: list[Sample], replayed: bool) -> torch.Tensor:
    """Latents of ten blocks, with another prompt after the sixth, and those of a fork after the eighth."""
    pipeline = load(load_config(overrides=settings | {"num_output_frames": 30}), PROMPTS)
    pipeline.graphs = replayed
    generation = pipeline.start(samples)
    made = [generation.step().latents for _ in range(6)]
    generation.switch(PROMPTS[1], "recache")
    made += [generation.step().latents for _ in range(2)]
    twin = generation.fork()
    for _ in range(2):
        made += [generation.step().latents, twin.step().latents]
    return torch.cat(made, dim=1)


@pytest.mark.parametrize("method", ["native", "latentmem", "draft", "sink"])
@pytest.mark.parametrize("batch", [1, 2])
def test_replayed_forwards_are_those_made_anew(root, settings, captured, method, batch):
    kwargs = {"sink_size": int(method == "sink")}
    if method in ("latentmem", "draft"):
        kwargs = latentmem(root, query="draft" if method == "draft" else "last")
    settings = settings | {"model_kwargs": kwargs}
    samples = [Sample(PROMPTS[0], number) for number in range(batch)]
    anew = make(settings, samples, False)
    assert not captured
    replayed = make(settings, samples, True)
    assert torch.equal(replayed, anew)
    assert len(captured) == 3  # the window's first full block, the other prompt, the fork


@pytest.mark.parametrize("kwargs", [{"merge": "ema", "window_positions": True}, {"bias": "recency"}])
def test_forwards_whose_context_changes_between_steps_are_not_captured(settings, captured, kwargs):
    pipeline = load(load_config(overrides=settings | {"model_kwargs": kwargs}), PROMPTS)
    pipeline.graphs = True
    for _ in pipeline.blocks(Sample(PROMPTS[0])):
        pass
    assert not captured


def test_what_cannot_be_captured_ends_with_a_remedy(settings, monkeypatch):
    @contextmanager
    def refused(*_: object, **__: object):
        yield
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refused)
    pipeline = load(load_config(overrides=settings), PROMPTS)
    pipeline.graphs = True
    with pytest.raises(UserError, match=r"not permitted.*set cuda_graphs=false"):
        list(pipeline.blocks(Sample(PROMPTS[0])))


@pytest.mark.parametrize(
    "setting", [{"cuda_graphs": False}, {"memory": "low"}, {"weights": "fp8_products"}, {"compile": True}]
)
def test_runs_whose_weights_move_are_not_captured(settings, setting):
    assert can_capture(load_config(overrides=settings), gpu=True)
    assert not can_capture(load_config(overrides=settings), gpu=False)
    assert not can_capture(load_config(overrides=settings | setting), gpu=True)


def test_processes_that_share_a_video_capture_nothing(settings, monkeypatch):
    monkeypatch.setenv("GPUS_PER_VIDEO", "2")
    assert not can_capture(load_config(overrides=settings), gpu=True)
