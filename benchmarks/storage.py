"""What smaller storage costs: `python -m benchmarks.storage [CONFIG.yaml]`.

Generates the same video with frames outside the window kept in each type of `pipeline.bank.codec`, and
compares selections and latents with those of the model's own type.
"""

import sys

from utils.errors import UserError, run


def main() -> None:
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        return
    if len(sys.argv) > 2:
        raise UserError(f"'{sys.argv[2]}' is too much; give one config")

    path = sys.argv[1] if sys.argv[1:] else "configs/tinyworld_latentmem.yaml"
    if path.startswith("-") or "=" in path:
        raise UserError(f"'{path}' is no config; give one, such as configs/tinyworld_latentmem.yaml")

    import torch

    from benchmarks.inputs import first_prompt
    from pipeline import load
    from pipeline.bank.codec import STORAGES
    from pipeline.config import load_config
    from pipeline.preflight import preflight

    prompt = first_prompt(load_config(path))
    found = {storage: preflight(load_config(path, {"bank": {"storage": storage}})) for storage in STORAGES}
    print("| storage | memory at the end | blocks with the same selection | rms difference, first 10 s | whole |")
    print("|---|---|---|---|---|")
    reference = None
    for storage in STORAGES:
        pipeline = load(found[storage])
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
