"""Clips of unseen scenes as latents, with the camera's truth beside them: `python -m tinyworld.truth [FOLDER]`.

Retrieval rules are judged on them (docs/retrieval_encoder.md).
"""

import argparse

from tinyworld.training.vae import encode
from tinyworld.world.film import held_out
from tinyworld.world.scene import ONE_LATENT, VIEW, pixel_frames
from utils.errors import UserError, run
from utils.files import require_writable, write_json
from utils.tensors import save_tensors
from wan.vae import load_vae


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tinyworld.truth", description=__doc__.split(":")[0] + ".")
    parser.add_argument("folder", nargs="?", default="datasets/tinyworld_truth")
    parser.add_argument("--clips", type=int, default=64, help="how many [%(default)s]")
    parser.add_argument("--frames", type=int, default=85, help="latent frames a clip [%(default)s]")
    parser.add_argument("--vae", default="wan_models/tinyworld/vae", help="the codec [%(default)s]")
    arguments = parser.parse_args()
    for name in ("clips", "frames"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name} is {getattr(arguments, name)}; it must be at least 1")
    vae = load_vae(arguments.vae)
    folder = require_writable(arguments.folder)
    files = []
    for index in range(arguments.clips):
        clip = held_out(index, pixel_frames(arguments.frames))
        latents = encode(vae, clip.video[None])[0]  # [F, C, h, w]
        path = folder / f"latent_{index:06d}.pt"
        files.append({"file": path.name, "prompt": clip.caption})
        camera = clip.camera[::ONE_LATENT].tolist()
        write_json(path.with_suffix(".truth.json"), {"camera": camera, "view": VIEW, "loop": None})
        save_tensors(path, latents.bfloat16())
    write_json(folder / "manifest.json", {"files": files})


if __name__ == "__main__":
    run(main)
