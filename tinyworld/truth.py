"""Clips of unseen scenes as latents, with the camera's truth beside them: `python -m tinyworld.truth [FOLDER]`."""

import argparse
from pathlib import Path

from diffusers import AutoencoderKLWan

from tinyworld.corpus import held_out, normalised
from tinyworld.vae import encode, to_video
from tinyworld.world import ONE_LATENT, VIEW, pixel_frames
from utils.errors import run
from utils.files import write_json
from utils.tensors import save_tensors


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tinyworld.truth", description=__doc__.split(":")[0] + ".")
    parser.add_argument("folder", nargs="?", default="datasets/tinyworld_truth")
    parser.add_argument("--clips", type=int, default=64)
    parser.add_argument("--frames", type=int, default=85, help="latent frames a clip [%(default)s]")
    parser.add_argument("--vae", default="wan_models/tinyworld/vae")
    args = parser.parse_args()
    vae = AutoencoderKLWan.from_pretrained(args.vae).eval()
    for index in range(args.clips):
        clip = held_out(index, pixel_frames(args.frames))
        latents = encode(vae, to_video(clip.video[None]))[0].transpose(0, 1)  # [F, C, h, w]
        path = Path(args.folder) / f"latent_{index:06d}.pt"
        camera = clip.camera[::ONE_LATENT].tolist()
        write_json(path.with_suffix(".truth.json"), {"camera": camera, "view": VIEW, "loop": None})
        save_tensors(path, normalised(vae, latents).bfloat16())


if __name__ == "__main__":
    run(main)
