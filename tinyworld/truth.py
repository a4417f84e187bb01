"""Clips of unseen scenes as latents, with the camera's truth beside them: `python -m tinyworld.truth [FOLDER]`.

Retrieval rules are judged on them (docs/retrieval_encoder.md).
"""

from tinyworld.training.vae import encode
from tinyworld.world.film import held_out
from tinyworld.world.scene import ONE_LATENT, VIEW, pixel_frames
from utils.command_line import Parser, folder_name, whole_number
from utils.errors import run
from utils.files import require_writable, write_json
from utils.tensors import save_tensors
from wan.vae import load_vae


def main() -> None:
    parser = Parser(prog="python -m tinyworld.truth", description=__doc__.split(":")[0] + ".")
    parser.add_argument("folder", nargs="?", type=folder_name, default="datasets/tinyworld_truth")
    parser.add_argument("--clips", type=whole_number(1, 10**6), default=64, help="how many [%(default)s]")
    parser.add_argument("--first", type=whole_number(0, 10**6), default=0, help="number of the first [%(default)s]")
    parser.add_argument("--frames", type=whole_number(1, 10**5), default=85, help="latent frames a clip [%(default)s]")
    parser.add_argument("--vae", default="wan_models/tinyworld/vae", help="the codec [%(default)s]")
    arguments = parser.parse_args()
    vae = load_vae(arguments.vae)
    folder = require_writable(arguments.folder)
    files = []
    for index in range(arguments.first, arguments.first + arguments.clips):
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
