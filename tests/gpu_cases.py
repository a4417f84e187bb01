"""Generations to look at on a GPU that is not there: between them they use every stream, wait and tier."""

from benchmarks.fake_gpu.engine import Case, Seen, watch

FRAME = 2 * 1560 * 1536 * 2  # bytes of a frame's keys and values in one layer of 1.3B at 480x832, bfloat16
GB = FRAME / 1e9
WINDOW = {"local_attn_size": 8, "sink_size": 1}
NATIVE = {"model_kwargs": WINDOW}
LATENTMEM = {
    "model_kwargs": WINDOW
    | {"use_latentmem": True, "compression_method": "avg_pool", "memory_size": 2, "recent_exclude": 0}
    | {"selection": "random"}
}
NO_GAP = {"model_kwargs": LATENTMEM["model_kwargs"] | {"retrieve_after": "local", "memory_across_scenes": True}}
DRAFT = {"model_kwargs": NO_GAP["model_kwargs"] | {"query": "draft"}, "denoising_step_list": [1000, 500]}
POOLED = {"model_kwargs": WINDOW | {"policy": "compressed_past", "past_size": 2}}
SINK = {"model_kwargs": WINDOW | {"policy": "rolling_sink"}}
TIERS = {"device_gb": 2.5 * GB, "host_gb": 3.5 * GB, "disk_gb": 100 * GB}
BOUND = {"capacity": 8, "eviction": "redundancy", "storage": "fp8"}
SHORT = {"denoising_step_list": [1000]}
LOW = {"memory": "low"}

# Name -> settings of the run, and of the case beside them.
CASES: dict[str, tuple[dict, dict]] = {
    "host": (LATENTMEM, {}),
    "tiers": (LATENTMEM | {"bank": TIERS | {"storage": "int8", "device_gb": GB, "host_gb": 2 * GB}}, {}),
    "batch": (LATENTMEM | {"bank": TIERS, "batch_size": 2}, {}),
    "device and disk": (LATENTMEM | {"bank": TIERS | {"host_gb": 0.0}}, {}),
    "host and disk": (LATENTMEM | {"bank": TIERS | {"device_gb": 0.0, "host_gb": 1.5 * GB}}, {}),
    "bounded, low": (LATENTMEM | {"bank": BOUND} | LOW, {}),
    "pooled, cast": (POOLED | {"weights": "cast_fp8"}, {}),
    "sink, low": (SINK | LOW, {"layers": 4, "blocks": 2}),
    "cast, low": (NATIVE | {"weights": "cast_fp8"} | LOW, {"layers": 5, "blocks": 1, "counted": 1}),
    "decoding": (NATIVE, {"vae": "tiny", "blocks": 2}),
    "decoding, low": (NATIVE | LOW, {"vae": "tiny", "blocks": 2}),
    "told": (NO_GAP, {"told": True}),
    "draft": (DRAFT, {}),
    "draft, tiers": (DRAFT | {"bank": TIERS | {"storage": "int8", "device_gb": GB, "host_gb": 2 * GB}}, {}),
    "fork": (LATENTMEM, {"fork": 5}),
    "state": (LATENTMEM, {"kept": 5}),
    "switch": (NO_GAP, {"told": True, "switched": 5}),
}


def seen(settings: dict, **case: object) -> Seen:
    """Seven blocks of one layer, past the first retrievals, or what `case` says; the last two are counted."""
    return watch(Case({**SHORT, **settings}, **{"blocks": 7, "counted": 2, **case}))


def seen_case(name: str) -> Seen:
    settings, case = CASES[name]
    return seen(settings, **case)
