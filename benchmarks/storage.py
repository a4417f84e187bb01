"""What smaller storage costs: `python -m benchmarks.storage [CONFIG.yaml]`.

Generates the same video with frames outside the window kept in each type of `pipeline.bank.codec`, and
compares selections and latents with those of the model's own type.
"""

import sys
from pathlib import Path

from utils.errors import UserError, run


def main() -> None:
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        return
    if len(sys.argv) > 2:
        raise UserError(f"'{sys.argv[2]}' is too much; give one config")

    import torch

    from pipeline import load
    from pipeline.bank.codec import STORAGES

    config = sys.argv[1] if sys.argv[1:] else "configs/tinyworld_latentmem.yaml"
    print("| storage | memory at the end | blocks with the same selection | rms difference, first 10 s | whole |")
    print("|---|---|---|---|---|")
    reference = None
    for storage in STORAGES:
        pipeline = load(config, bank={"storage": storage})
        prompt = Path(pipeline.config.data_path).read_text().splitlines()[0]
        blocks = list(pipeline.blocks(prompt))
        latents = torch.cat([block.latents for block in blocks], dim=1)
        chosen = [block.selection and {frozenset(row) for row in block.selection.frames} for block in blocks]
        reference = reference or (latents, chosen)
        same = sum(a == b for a, b in zip(chosen, reference[1], strict=True))
        error = (latents - reference[0]).square().mean(dim=(0, 2, 3, 4)).sqrt()
        print(
            f"| {storage} | {blocks[-1].memory_bytes / 1e6:.2f} MB | {same} of {len(blocks)} | "
            f"{error[:41].square().mean().sqrt():.4f} | {error.square().mean().sqrt():.4f} |"
        )


if __name__ == "__main__":
    run(main)
