"""The causal pipeline; `from pipeline import load` is the way in.

`load` is looked up on use, so that importing one module here costs no more than that module.
"""


def __getattr__(name: str):
    if name in ("load", "Pipeline", "Sample"):
        from pipeline import pipeline

        return getattr(pipeline, name)
    raise AttributeError(f"module 'pipeline' has no attribute '{name}'")
