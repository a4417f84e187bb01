"""The causal pipeline; `from pipeline import load` is the way in.

A video goes this way. `config` and `prompts` say what is wanted, `preflight` checks that it can be made, and
`build` makes a `Pipeline`. Its `Generation` plans each block (`context`), denoises it (`sampler`, `noise`) over the
keys and values of past frames (`kv_cache`, `bank/`), and chooses what the next block retrieves (`descriptors`,
`retrieval`, `selection`). `run` hands the blocks to `sinks`, which `decode` and `record` them.

Names are looked up on use, so that importing one module here costs no more than that module.
"""

HOME = {"load": "build", "Pipeline": "pipeline", "Sample": "samples", "Generation": "generation"}


def __getattr__(name: str):
    if name not in HOME:
        raise AttributeError(f"module 'pipeline' has no attribute '{name}'")
    from importlib import import_module

    return getattr(import_module(f"pipeline.{HOME[name]}"), name)
