"""What shorter numbers cost: `python -m benchmarks.storage [CONFIG.yaml] [bank|weights]`.

Generates the same video with frames outside the window kept in each type of `pipeline.bank.codec`, or with the
transformer's weights in each form of `pipeline.offload`, and compares selections and latents with those of the model's
own type.
"""

import operator
import sys
from typing import TYPE_CHECKING

from utils.errors import UserError, run

if TYPE_CHECKING:
    from pipeline.generation import LatentBlock


def main() -> None:
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        return
    given = sys.argv[1:]
    what = given.pop() if given and given[-1] in ("bank", "weights") else "bank"
    if len(given) > 1:
        raise UserError(f"'{given[1]}' is too much; give one config, and bank or weights")
    path = given[0] if given else "configs/tinyworld_latentmem.yaml"
    if path.startswith("-") or "=" in path:
        raise UserError(f"'{path}' is no config; give one, such as configs/tinyworld_latentmem.yaml")

    import torch

    from benchmarks.inputs import first_prompt
    from pipeline import load
    from pipeline.bank.codec import STORAGES
    from pipeline.config import load_config
    from pipeline.offload import QUANTIZATION
    from pipeline.preflight import preflight

    prompt = first_prompt(load_config(path))
    forms = {"bank": STORAGES, "weights": QUANTIZATION}[what]
    found = {}
    for form in forms:
        found[form] = preflight(load_config(path, {"bank": {"storage": form}} if what == "bank" else {what: form}))
    print(f"| {what} | memory at the end | blocks with the same selection | rms difference, first 10 s | whole |")
    print("|---|---|---|---|---|")
    reference = None  # latents and selections of the model's own type, the first of all
    for form in forms:
        pipeline = load(found[form])
        blocks = list(pipeline.blocks(prompt))
        latents = torch.cat([block.latents for block in blocks], dim=1)
        chosen = [retrieved(block) for block in blocks]
        if reference is None:
            reference = (latents, chosen)
        same = sum(map(operator.eq, chosen, reference[1]))
        error = (latents - reference[0]).square().mean(dim=(0, 2, 3, 4)).sqrt()  # [F]
        start = error[:41].square().mean().sqrt()
        whole = error.square().mean().sqrt()
        memory = blocks[-1].memory_bytes / 1e6
        print(f"| {form} | {memory:.2f} MB | {same} of {len(blocks)} | {start:.4f} | {whole:.4f} |")


def retrieved(block: "LatentBlock") -> set[frozenset[int]]:
    """The frames that a block chose for the next one, whatever their order."""
    if block.selection is None:
        return set()
    return set(map(frozenset, block.selection.frames))


if __name__ == "__main__":
    run(main)
