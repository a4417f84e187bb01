"""The backbones: what each is made of, where its files come from, and which config runs it.

    python -m pipeline.backbones usage                      # what inference.sh takes
    python -m pipeline.backbones run BACKBONE METHOD        # the config that runs it, and the settings beside it

To add a checkpoint, add a row to `BACKBONES` and its YAML; to add a method, a row to `METHODS`. Nothing here imports
more than the standard library.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from utils.errors import UserError, did_you_mean, run

PROJECT = Path(__file__).resolve().parent.parent
WAN = "Wan-AI/Wan2.1-T2V-1.3B"
RELEASE = "qixinhu11/LongLive-RAG"
WAN_FOLDER = "wan_models/Wan2.1-T2V-1.3B"


@dataclass(frozen=True)
class Method:
    """A way to assemble the context.

    Attributes:
        config: `native` or `latentmem`: whose YAML of the backbone it starts from.
        settings: what it changes there, as `key=value`; published sizes.
    """

    config: str
    settings: tuple[str, ...] = ()


def _method(config: str, **context: object) -> Method:
    return Method(config, tuple(f"model_kwargs.{key}={value}" for key, value in context.items()))


METHODS = {  # docs/methods.md says where each comes from
    "native": Method("native"),
    "latentmem": Method("latentmem"),
    "infinity_rope": _method("native", local_attn_size=6, sink_size=1, window_positions="true"),
    "commit_forcing": _method("native", local_attn_size=12, sink_size=3, commit_rule="newest", commit_frames=12),
    "rolling_sink": _method("native", policy="rolling_sink", local_attn_size=21, sink_size=0),
    "memrope": _method("native", local_attn_size=12, sink_size=3, window_positions="true", merge="ema"),
    "memrope_adaptive": _method(
        "native", local_attn_size=12, sink_size=3, window_positions="true", merge="ema_adaptive"
    ),
    "tethercache": _method(
        "native", local_attn_size=21, sink_size=3, window_positions="true", merge="tether", merged_size=14
    ),
    "nearest_tokens": _method("native", window_positions="true", merge="nearest", merged_size=6),
    "deep_forcing": _method("native", policy="deep_forcing", local_attn_size=21, sink_size=10),
    "id_forcing": _method("native", local_attn_size=12, sink_size=3, window_positions="true", commit_rule="own"),
    "id_forcing_reencoded": _method("native", policy="reencoded", local_attn_size=12, sink_size=3, plain_frames=21),
    "deep_sink": _method("native", local_attn_size=21, sink_size=14),
    "recency_forcing": _method("native", bias="recency"),
    "latentmem_commit": _method("latentmem", commit_rule="without_memory"),
    "latentmem_window": _method("latentmem", retrieved_positions="window"),
    "latentmem_draft": _method("latentmem", query="draft", retrieve_after="local", recent_exclude=0),
    "compressed_past": _method("native", policy="compressed_past"),
}


@dataclass(frozen=True)
class File:
    """A file that a backbone needs.

    Attributes:
        name: its path in the repository.
        repo: repository of the hub; None for a file that is part of this project.
        size: bytes; None where only the hub says.
        folder: the folder here in which `name` lies.
        others: files or folders, also in `folder`, of which each serves in its place.
        optional: a run does without it.
    """

    name: str
    repo: str | None = RELEASE
    size: int | None = None
    folder: str = "."
    others: tuple[str, ...] = ()
    optional: bool = False

    @property
    def path(self) -> Path:
        """Where it belongs, relative to the root of the downloads."""
        return Path(self.folder) / self.name


@dataclass(frozen=True)
class Model:
    """A model folder, which several backbones may share.

    Attributes:
        text_encoder: the encoder, its tokenizer, and the transformer's sizes.
    """

    folder: str
    text_encoder: tuple[File, ...]
    vae: tuple[File, ...]

    @property
    def files(self) -> tuple[File, ...]:
        return (*self.text_encoder, *self.vae)


@dataclass(frozen=True)
class Backbone:
    """What one backbone is made of.

    Attributes:
        weights: the transformer's checkpoint and, where there is one, its LoRA.
        retrieval_encoder: for methods that compare frames with it.
        prompts: the prompts of its configs.
    """

    model: Model
    weights: tuple[File, ...]
    retrieval_encoder: File
    prompts: File

    @property
    def files(self) -> tuple[File, ...]:
        return (*self.model.files, *self.weights, self.retrieval_encoder, self.prompts)


def _wan(name: str, size: int | None, *others: str, optional: bool = False) -> File:
    return File(name, WAN, size, WAN_FOLDER, others, optional)


def _own(name: str, folder: str = ".") -> File:
    return File(name, None, folder=folder)


WAN_MODEL = Model(
    folder=WAN_FOLDER,
    text_encoder=(
        _wan("config.json", None, optional=True),
        _wan(
            "models_t5_umt5-xxl-enc-bf16.pth",
            11_361_920_418,
            "models_t5_umt5-xxl-enc-bf16.safetensors",
            "text_encoder/config.json",
        ),
        _wan("google/umt5-xxl/special_tokens_map.json", 6_623, optional=True),
        _wan("google/umt5-xxl/tokenizer.json", 16_837_417, "google/umt5-xxl/spiece.model", "tokenizer"),
        _wan("google/umt5-xxl/tokenizer_config.json", 61_728, optional=True),
    ),
    vae=(_wan("Wan2.1_VAE.pth", 507_609_880, "Wan2.1_VAE.safetensors", "vae/config.json"),),
)
TINYWORLD_MODEL = Model(
    folder="wan_models/tinyworld",
    text_encoder=(
        _own("config.json", "wan_models/tinyworld"),
        _own("text_encoder/config.json", "wan_models/tinyworld"),
        _own("text_encoder/model.safetensors", "wan_models/tinyworld"),
        _own("tokenizer/tokenizer.json", "wan_models/tinyworld"),
        _own("tokenizer/tokenizer_config.json", "wan_models/tinyworld"),
    ),
    vae=(
        _own("vae/config.json", "wan_models/tinyworld"),
        _own("vae/diffusion_pytorch_model.safetensors", "wan_models/tinyworld"),
    ),
)
RETRIEVAL_ENCODER = File("checkpoints/ae_latent_mem.pt")
MOVIEGEN_PROMPTS = File("checkpoints/moviegenbench_128_refined.txt")

BACKBONES = {
    "causal_forcing": Backbone(
        model=WAN_MODEL,
        weights=(File("checkpoints/causal_forcing.pt"),),
        retrieval_encoder=RETRIEVAL_ENCODER,
        prompts=MOVIEGEN_PROMPTS,
    ),
    "self_forcing": Backbone(
        model=WAN_MODEL,
        weights=(File("checkpoints/self_forcing.pt"),),
        retrieval_encoder=RETRIEVAL_ENCODER,
        prompts=MOVIEGEN_PROMPTS,
    ),
    "longlive": Backbone(
        model=WAN_MODEL,
        weights=(File("checkpoints/longlive_base.pt"), File("checkpoints/longlive_lora.pt")),
        retrieval_encoder=RETRIEVAL_ENCODER,
        prompts=MOVIEGEN_PROMPTS,
    ),
    "tinyworld": Backbone(
        model=TINYWORLD_MODEL,
        weights=(_own("checkpoints/tinyworld.safetensors"),),
        retrieval_encoder=_own("checkpoints/tinyworld_ae.safetensors"),
        prompts=_own("checkpoints/tinyworld_prompts.txt"),
    ),
}
CORPUS_BACKBONE = "longlive"  # of configs/generate_latent.yaml
CORPUS_PROMPTS = File("checkpoints/vidprom_filtered_extended.txt")
SAMPLES = "toydatasets"  # a folder of latents in RELEASE; which files it has, only the hub says


def all_files() -> list[File]:
    """Every file of every backbone, and the corpus's prompts."""
    found = [CORPUS_PROMPTS]
    for backbone in BACKBONES.values():
        found += backbone.files
    return list(dict.fromkeys(found))


def config_path(backbone: str, method: str) -> Path:
    """The config that runs a backbone with a method.

    Raises:
        UserError: no such backbone or method.
    """
    if backbone not in BACKBONES:
        raise UserError(f"'{backbone}' is no backbone{did_you_mean(backbone, BACKBONES)}")
    if method not in METHODS:
        raise UserError(f"'{method}' is no method{did_you_mean(method, METHODS)}")
    return Path("configs") / f"{backbone}_{METHODS[method].config}.yaml"


def arguments(backbone: str, method: str) -> list[str]:
    """What inference.py is to be called with: the config, and the settings that make the method of it."""
    path = config_path(backbone, method)
    changes = METHODS[method].settings
    if changes:
        changes += (f"output_folder=videos/{backbone}/{method}",)
    return [str(PROJECT / path), *changes]


def usage() -> str:
    """What inference.sh takes, for a person."""
    return (
        "usage: bash inference.sh BACKBONE METHOD [key=value ...]\n"
        f"BACKBONE: {' | '.join(BACKBONES)}\n"
        f"METHOD:   {' | '.join(METHODS)}"
    )


def main() -> None:
    """Answer inference.sh."""
    command, *words = sys.argv[1:] or ["usage"]
    if command == "usage" and not words:
        print(usage())
        return
    try:
        if command != "run" or len(words) < 2:
            raise UserError("name a backbone and a method")
        print("\n".join(arguments(*words[:2])))
    except UserError as error:
        print(f"error: {error}\n{usage()}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    run(main)
