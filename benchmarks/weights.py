"""Seconds and peak host memory of loading a part, or of generating one block: `python -m benchmarks.weights ROOT PART`.

ROOT is a folder as `download.sh` or `tests.make_random_weights` fills it. One part a process, because the peak is the
process's own; it is printed beside what the imports alone take.
"""

import resource
import time
from pathlib import Path

from pipeline.backbones import WAN_FOLDER
from utils.command_line import Parser, whole_number
from utils.errors import UserError, run

PARTS = ("generator", "text_encoder", "vae", "check", "block")


def main() -> None:
    parser = Parser(prog="python -m benchmarks.weights", description=__doc__.split("\n")[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument(
        "--height", type=whole_number(1, 16384), default=64, help="for `check` and `block` [%(default)s]"
    )
    parser.add_argument("--width", type=whole_number(1, 16384), default=96)
    arguments = parser.parse_args()
    if not (arguments.root / WAN_FOLDER).is_dir():
        raise UserError(f"{arguments.root} holds no {WAN_FOLDER}; 'bash download.sh causal_forcing' fills one")
    import torch

    from pipeline.config import RunConfig
    from pipeline.preflight import preflight
    from wan.checkpoint import load_generator
    from wan.text_encoder import load_umt5
    from wan.vae import load_vae

    dtype = getattr(torch, arguments.dtype)
    folder = arguments.root / WAN_FOLDER
    generator = arguments.root / "checkpoints" / "causal_forcing.pt"
    encoder = folder / "models_t5_umt5-xxl-enc-bf16.pth"
    vae = folder / "Wan2.1_VAE.pth"
    config = RunConfig(
        generator_ckpt=str(generator), model_root=str(folder.parent), dtype=arguments.dtype, device="cpu",
        height=arguments.height, width=arguments.width, num_output_frames=3,
    )  # fmt: skip
    before = peak()
    started = time.perf_counter()
    if arguments.part == "block":
        block(config)
    elif arguments.part == "check":
        preflight(config)
    elif arguments.part == "generator":
        load_generator(generator, folder.name, folder, device="cpu", dtype=dtype)
    elif arguments.part == "text_encoder":
        load_umt5(encoder, "cpu", dtype)
    else:
        load_vae(vae, "cpu", dtype)
    seconds = time.perf_counter() - started
    found = f"{arguments.part} {arguments.dtype}: "
    file = {"generator": generator, "text_encoder": encoder, "vae": vae}.get(arguments.part)
    if file:
        found += f"file {file.stat().st_size / 1e9:.2f} GB, "
    found += f"{seconds:.1f} s, peak {peak() / 1e9:.2f} GB, of which {before / 1e9:.2f} GB are the imports"
    print(found)


def block(config) -> None:
    """Load the transformer and generate one block from an empty prompt."""
    import torch

    from pipeline.build import assemble, build_model
    from pipeline.noise import SeededNoise
    from pipeline.preflight import placement
    from wan.params import LatentFormat

    device, dtype = placement(config)
    model = build_model(config, device, dtype)
    pipeline = assemble(config, model, LatentFormat(), device)
    started = time.perf_counter()
    text = torch.zeros(1, model.params.text_len, model.params.text_dim)
    made = pipeline.start_from(text, SeededNoise(0, [(0, 0)])).step()
    print(f"one block {tuple(made.latents.shape)}: {time.perf_counter() - started:.1f} s, std {made.latents.std():.2f}")


def peak() -> int:
    """Largest resident memory of this process so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    run(main)
