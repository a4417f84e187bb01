"""Every number of the training: the tree behind configs/tinyworld_train.yaml."""

from dataclasses import dataclass, field

from tinyworld.context import BLOCK
from utils.errors import UserError


@dataclass(frozen=True)
class WorldSettings:
    """Scenes painted for training, held-out ones, and the held-out clips that the prompt file lists first."""

    scenes: int = 1280
    held_out: int = 64
    shown: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class VaeStage:
    """One leg of the codec's training: `frames` of `height` x `width` crops, lr falling from `lr` to `lr_end`.

    Attributes:
        noise: deviation of the noise on the latents, relative to theirs.
        mse: weight of the square error beside the absolute one.
    """

    steps: int = 0
    frames: int = 1
    height: int = 32
    width: int = 32
    batch: int = 1
    lr: float = 1e-3
    lr_end: float = 1e-3
    noise: float = 0.1
    mse: float = 1.0


@dataclass(frozen=True)
class VaeSettings:
    base_dim: int = 24
    z_dim: int = 16
    check_clips: int = 16
    stages: list[VaeStage] = field(default_factory=list)


@dataclass(frozen=True)
class LatentSettings:
    """`clips` of `frames` latent frames, a training sequence's and some to spare, and `starts` of `start_frames`."""

    clips: int = 960
    frames: int = 80
    starts: int = 1280
    start_frames: int = 12
    batch: int = 8


@dataclass(frozen=True)
class BackboneSettings:
    """The causal transformer, its text encoder and their training by teacher forcing.

    Attributes:
        frames: latent frames of a training sequence.
        batch, copies: sequences a step, and noisy copies of each.
        start_batch, start_blocks: the same for the steps that train only how a video starts.
        kinds: how often a step is of each kind: start, native, latentmem.
        context_noise: clean frames carry noise of deviation U(0, context_noise).
        full_noise: share of the noisy blocks at exactly sigma = 1.
        most_memory: a latentmem step has 0 to this many memory frames.
        near_memory: share of the memory frames that are drawn near the place the block will show.
        astray: by how many pixels, at most, that place is missed.
        no_local, wide_local: shares of the latentmem steps without local frames, and with unused slots local.
        ahead: weight of the loss on what the middle of the transformer tells of the object and the turn to come.
        muon_lr, adam_lr: peak learning rates of the block matrices and of all else.
        mixed: matrix products of the blocks in bfloat16.
    """

    dim: int = 128
    ffn_dim: int = 512
    num_heads: int = 4
    num_layers: int = 6
    freq_dim: int = 64
    text_dim: int = 64
    text_len: int = 32
    text_layers: int = 2
    steps: int = 3000
    frames: int = 48
    batch: int = 2
    copies: int = 3
    start_batch: int = 8
    start_blocks: int = 4
    kinds: list[float] = field(default_factory=lambda: [0.25, 0.3, 0.45])
    max_start: int = 120
    caption_dropout: float = 0.1
    context_noise: float = 0.25
    full_noise: float = 0.3
    most_memory: int = 6
    near_memory: float = 0.75
    astray: float = 32.0
    no_local: float = 0.2
    wide_local: float = 0.2
    ahead: float = 0.1
    muon_lr: float = 3e-3
    adam_lr: float = 2e-3
    warmup: int = 50
    decay: float = 0.3
    rate_end: float = 0.3
    ema: float = 0.998
    mixed: bool = True


@dataclass(frozen=True)
class FewStepSettings:
    """Many small steps with falling learning rates, on contexts that carry the model's own errors.

    Attributes:
        own: share of the context blocks that the model itself made, from frames noised to a level s of `lowest`..1.
        guidance: how far, 0 to below 1, the target is moved towards what the caption changes.
        muon_lr, adam_lr: learning rates at the start; they fall to zero.
        kinds, batch, copies, start_batch, start_blocks: as in `BackboneSettings`.
    """

    steps: int = 1000
    own: float = 0.5
    lowest: float = 0.2
    guidance: float = 0.0
    muon_lr: float = 4e-3
    adam_lr: float = 2e-3
    kinds: list[float] = field(default_factory=lambda: [0.6, 0.2, 0.2])
    batch: int = 1
    copies: int = 2
    start_batch: int = 8
    start_blocks: int = 2


@dataclass(frozen=True)
class EncoderSettings:
    """The retrieval encoder: `key=value` settings beside those of configs/tinyworld_generate_latent.yaml (`corpus`)
    and configs/tinyworld_ae.yaml (`training`)."""

    corpus: list[str] = field(default_factory=list)
    training: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class TrainSettings:
    """The whole training: `work` holds what can be resumed, `export` gets the weights as the pipeline loads them."""

    seed: int = 0
    threads: int = 2
    device: str = "auto"
    work: str = "runs/tinyworld"
    export: str = "runs/tinyworld/export"
    world: WorldSettings = field(default_factory=WorldSettings)
    vae: VaeSettings = field(default_factory=VaeSettings)
    latents: LatentSettings = field(default_factory=LatentSettings)
    backbone: BackboneSettings = field(default_factory=BackboneSettings)
    fewstep: FewStepSettings = field(default_factory=FewStepSettings)
    encoder: EncoderSettings = field(default_factory=EncoderSettings)

    def __post_init__(self) -> None:
        most = BLOCK * max(self.backbone.start_blocks, self.fewstep.start_blocks)
        for name, have, due in (("frames", self.latents.frames, self.backbone.frames),
                                ("start_frames", self.latents.start_frames, most)):  # fmt: skip
            if have < due:
                raise UserError(f"latents.{name} is {have}; the training sequences need at least {due}")
