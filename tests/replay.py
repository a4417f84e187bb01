"""Replay a recorded generation and compare: `python -m tests.replay FILE.json [FILE.json ...]`.

A recording is NAME.json (backbone sizes, run settings, weight files beside it, what was retrieved)
with NAME.safetensors (noise, every re-noising draw, prompt embeddings, latents and, where recorded,
descriptors and flows; noise that is not there is drawn from the recording's seed, as it was). Prints
the largest absolute difference of each tensor and whether the selections and their order are equal;
exits with 1 beyond the recording's tolerance.
"""

import json
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch
from safetensors.torch import load_file

from pipeline.build import assemble, build_model
from pipeline.config import load_config
from pipeline.kv_cache import KVCache
from pipeline.noise import RecordedNoise
from pipeline.pipeline import Pipeline
from pipeline.preflight import placement
from utils.errors import UserError, run
from utils.files import require_file
from wan.params import LatentFormat, params_from_dict

DEFAULT_TOLERANCE = 2e-5  # float32 on a CPU, values near 5: 40 times their last bit


def memrope(method: dict) -> dict:
    return {
        "window_positions": True,
        "merge": "ema_adaptive" if method["adaptive"] else "ema",
        "merge_long": method["alpha_long"],
        "merge_short": method["alpha_short"],
    }


def tethercache(method: dict) -> dict:
    return {
        "window_positions": True,
        "merge": "tether",
        "merged_size": method["M"],
        "tether_diversity": method["alpha"],
        "tether_pull": method["tau"],
    }


def deep_forcing(method: dict) -> dict:
    return {
        "policy": "deep_forcing",
        "deep_budget": method["budget"],
        "deep_recent": method["recent"],
        "deep_uses": method["topc_max_reuse"],
    }


def id_forcing(method: dict) -> dict:
    if method.get("base") != "self_forcing":
        return {"window_positions": True, "commit_rule": "own"}
    sizes = {"local_attn_size": method["window"], "sink_size": method["sink"]}
    return {"policy": "reencoded", "plain_frames": 3 * method["native_chunks"]} | sizes


METHODS = {  # `method.name` of a recording -> settings of the context beside those that the recording has itself
    "infinity-rope": lambda method: {"window_positions": True},
    "commit-forcing": lambda method: {"commit_rule": "newest"},
    "rolling-sink": lambda method: {"policy": "rolling_sink"},
    "longlive-recache": lambda method: {},  # a sliding window; its prompts are switched
    "id-forcing": id_forcing,
    "memrope": memrope,
    "tethercache": tethercache,
    "deep-forcing": deep_forcing,
}


def replay(path: Path) -> bool:
    """Replay one recording and print the comparison; True if everything is within tolerance."""
    path = require_file(path, "recording", "give the .json of a recorded generation")
    record = json.loads(path.read_text())
    expected = load_file(require_file(path.with_suffix(".safetensors"), "recording", "it belongs beside the .json"))
    # A recording may keep its intermediate tensors in NAME_steps.safetensors, its inputs in NAME.safetensors.
    inputs = path.with_name(path.stem.removesuffix("_steps") + ".safetensors")
    noise = load_file(inputs) if "noise" not in expected else expected
    if "noise" not in noise:
        if not {"noise", "renoise"} <= record.get("tensors", {}).keys():
            raise UserError(f"{path} is no recording of a generation: it says no noise that one was made from")
        noise |= drawn_noise(record)
    pipeline = recorded_pipeline(record, path.parent, noise["noise"].shape)
    produced, selections, chosen = generate(pipeline, noise, switches_of(record))
    tolerance = record.get("tolerance", DEFAULT_TOLERANCE)
    print(f"{path.name}: tolerance {tolerance:g}")
    passed = True
    for name in sorted(expected.keys() & produced.keys()):
        difference = (produced[name].double() - expected[name].double()).abs().max().item()
        passed &= difference <= tolerance
        print(
            f"  {name:<20} max |difference| {difference:.3g}{'' if difference <= tolerance else '  BEYOND TOLERANCE'}"
        )
    if ignored := sorted(expected.keys() - produced.keys() - {"noise", "renoise", "prompt_embeds"}):
        print(f"  not compared: {', '.join(ignored)}")
    log = record.get("memory_indices_log")
    if log is not None:
        wanted = [(entry["query_frame"], entry["selected_global_frames"]) for entry in log]
        equal = selections == wanted
        passed &= equal
        print(f"  {'selections':<20} {len(wanted)} blocks, frames and order {'equal' if equal else 'DIFFERENT'}")
        # One list may be shorter; that alone makes the comparison fail above.
        for got, want in zip(selections, wanted, strict=False):
            if got != want:
                print(f"    recorded block {want[0]}: {want[1]}; here block {got[0]}: {got[1]}")
    if wanted := chosen_of(record):
        equal = chosen == wanted
        passed &= equal
        print(f"  {'frames by layer':<20} {len(wanted)} blocks, {'equal' if equal else 'DIFFERENT'}")
    return passed


def chosen_of(record: dict) -> dict[int, list[dict[int, int]]]:
    """A block's first frame -> of each layer, how many tokens of which frames it chose to keep."""
    found = {}
    for entry in record.get("memory_log", []):
        if entry["candidates"]:
            _, _, _, height, width = record["tensors"]["noise"]["shape"]
            found[entry["frame"]] = [dict.fromkeys(frames, height * width // 4) for frames in entry["memory"]]
    cuts = {entry["frame"] for entry in record.get("compressions", [])}
    for call in record.get("trace", []):
        if call["frame"] in cuts and call["forward"] == 0:
            counts = {}
            for frame, tokens in zip(call["attended"], call["tokens"], strict=True):
                if tokens is not None:
                    counts[frame] = len(tokens)
            found.setdefault(call["frame"], []).append(counts)
    return found


def drawn_noise(record: dict) -> dict[str, torch.Tensor]:
    """The noise that a recording was made with: all that blocks start from, and later draws one by one."""
    frames, channels, height, width = record["tensors"]["noise"]["shape"][1:]
    draws = record["tensors"]["renoise"]["shape"]
    first = torch.Generator().manual_seed(record["seed"])
    noise = torch.randn(1, frames, channels, height, width, generator=first)
    later = torch.Generator().manual_seed(record["seed"] + 1)
    renoise = [torch.randn(draws[1:], generator=later) for _ in range(draws[0])]
    return {"noise": noise, "renoise": torch.stack(renoise)}


def recorded_pipeline(record: dict, folder: Path, noise_shape: torch.Size) -> Pipeline:
    """The pipeline that a recording describes, built as any other; it has no text encoder and no VAE."""
    weights, args = dict(record["weights"]), dict(record["config"]["args"])
    kwargs = dict(args.pop("model_kwargs"))
    _, frames, channels, height, width = noise_shape
    method = record.get("method")
    method = METHODS[method["name"]](method) if method else {}
    format = LatentFormat(channels)
    ae_ckpt = weights.get("ae_ckpt", kwargs.get("ae_ckpt"))
    adapter = weights.get("adapter") or record.get("adapter")
    settings = {
        **args,
        "model_kwargs": kwargs | method | ({"ae_ckpt": str(folder / ae_ckpt)} if ae_ckpt else {}),
        **{key: str(folder / weights[key]) for key in ("generator_ckpt", "lora_ckpt") if weights.get(key)},
        **({"adapter": adapter} if adapter else {}),
        **{"use_ema": bool(weights.get("use_ema")), "device": "cpu", "dtype": "float32"},
        **{"num_output_frames": frames, "height": height * format.spatial, "width": width * format.spatial},
    }
    with tempfile.TemporaryDirectory() as root:  # a model folder that holds the sizes only
        params = params_from_dict(record["config"]["backbone"], "the recording")
        (Path(root) / "recorded").mkdir()
        (Path(root) / "recorded" / "config.json").write_text(json.dumps(params.to_dict()))
        config = load_config(overrides=settings | {"model_root": root, "model_name": "recorded"})
        device, dtype = placement(config)
        model = build_model(config, device, dtype)
    return assemble(config, model, format, device)


def switches_of(record: dict) -> dict[int, tuple[str, str]]:
    """First frame of each later scene -> the tensor with its prompt, and the rule of the switch."""
    method = record.get("method", {})
    found = {}
    for number, frame in enumerate(record.get("scene_first_frames", [0])[1:], start=1):
        if method["name"] == "infinity-rope":
            how = "cut" if method["rope_cut"][number - 1] else "flush"
        else:
            how = "recache" if method["global_sink"] else "recache_sink"
        found[frame] = (f"prompt_embeds_{number}", how)
    return found


def generate(
    pipeline: Pipeline,
    recorded: dict[str, torch.Tensor],
    switches: Mapping[int, tuple[str, str]] = MappingProxyType({}),
) -> tuple[dict, list, dict]:
    """Run the recorded generation.

    Returns:
        its tensors under the recording's names, the selections, and what layers chose to keep as in `chosen_of`.
    """
    steps = len(pipeline.config.denoising_step_list)
    sampler = pipeline.sampler
    calls: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    hook = pipeline.model.register_forward_hook(lambda module, inputs, flow: calls.append((inputs[0], inputs[1], flow)))
    pipeline.model.leave = lambda *inputs: pipeline.model(*inputs)  # the recordings have the flow of commits, too
    noise = RecordedNoise(recorded["noise"], recorded["renoise"])
    generation = pipeline.start_from(recorded["prompt_embeds"], noise)
    blocks, merged, chosen = [], [], {}
    while generation.start < pipeline.config.num_output_frames:
        if generation.start in switches:
            embeds, how = switches[generation.start]
            generation.switch(recorded[embeds], how)
        blocks.append(generation.step())
        if blocks[-1].plan.leaving:
            merged.append(merged_of(generation.cache))
            chosen[blocks[-1].plan.start] = chosen_by(generation.cache)
    hook.remove()

    def joined(forward: int) -> torch.Tensor:
        return torch.cat([flow for _, _, flow in calls[forward :: steps + 1]], dim=1)

    produced = {
        "latents": torch.cat([block.latents for block in blocks], dim=1),
        "last_step_flow": joined(steps - 1),
        "cache_update_flow": joined(steps),
        "timesteps_used": torch.stack([t[0].expand(blocks[0].latents.shape[1]) for _, t, _ in calls[: steps + 1]]),
    }
    if merged:
        produced |= {"ema": torch.stack(merged), "memory_end": merged[-1]}
    for step, timestep in enumerate(sampler.timesteps):
        clean = [sampler.schedule.to_clean(flow, x, timestep) for x, _, flow in calls[step :: steps + 1]]
        produced[f"step{step}_x0"] = torch.cat(clean, dim=1)
    if pipeline.descriptor is not None:
        produced["descriptors"] = pipeline.descriptor(produced["latents"])
        layers = range(pipeline.model.params.num_layers)
        left = torch.tensor([max(pipeline.config.num_output_frames - pipeline.policy.local_attn_size, 0)])
        produced |= {f"pool_len.{layer}": left for layer in layers}
    produced |= {f"merged.{name}": weight for name, weight in pipeline.model.state_dict().items()}
    selections = [(b.selection.block_start, [list(row) for row in b.selection.frames]) for b in blocks if b.selection]
    return produced, selections, chosen


def merged_of(cache: KVCache) -> torch.Tensor:
    """What a cache's layers have made, [layers, 2, frames, tokens, heads, head_dim], of the first sample."""
    layers = []
    for tokens in cache.merged.current:
        kv = torch.stack([tokens.keys[0], tokens.values[0]])
        layers.append(kv.unflatten(1, (-1, cache.shape.tokens())))
    return torch.stack(layers)


def chosen_by(cache: KVCache) -> list[dict[int, int]]:
    """Of each layer, how many tokens of which frames it keeps for the first sample."""
    found = []
    for tokens in cache.merged.current:
        frames, counts = tokens.frames[0].unique(return_counts=True)
        found.append(dict(zip(frames.tolist(), counts.tolist(), strict=True)))
    return found


def main() -> None:
    paths = [Path(argument) for argument in sys.argv[1:]]
    if not paths:
        raise UserError("name at least one recording: python -m tests.replay FILE.json")
    passed = [replay(path) for path in paths]
    if not all(passed):
        sys.exit(1)


if __name__ == "__main__":
    run(main)
