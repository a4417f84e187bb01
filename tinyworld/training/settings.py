"""Every number of the training: the tree behind configs/tinyworld_train.yaml."""

from dataclasses import dataclass

from pipeline.config import load_config
from pipeline.context import ContextPolicy
from tinyworld.world.film import HELD_OUT
from utils.errors import UserError
from utils.settings import Settings, setting

STEPS = ("start", "native", "latentmem")  # kinds of the backbone's steps


@dataclass(frozen=True, kw_only=True)
class WorldSettings(Settings):
    """The scenes."""

    scenes: int = setting(1280, "scenes painted for training", at_least=1)
    first: int = setting(0, "seed of the first of them", at_least=0, at_most=HELD_OUT // 2)
    held_out: int = setting(64, "scenes that no training sees", at_least=1)
    shown: list[int] = setting([], "held-out clips that the prompt file lists first", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        for clip in self.shown:
            if clip >= self.held_out:
                raise UserError(f"world.shown names clip {clip}; with world.held_out={self.held_out} the last one is "
                                f"{self.held_out - 1}")  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class VaeStage(Settings):
    """One leg of the codec's training."""

    steps: int = setting(0, "optimizer steps", at_least=0)
    frames: int = setting(1, "pixel frames of a clip, 1 and a multiple of 4", at_least=1)
    height: int = setting(32, "pixels of a crop, a multiple of 16", at_least=16, at_most=64)
    width: int = setting(32, "pixels of a crop, a multiple of 16", at_least=16, at_most=96)
    batch: int = setting(1, "clips a step", at_least=1)
    lr: float = setting(1e-3, "learning rate of the first step", above=0)
    lr_end: float = setting(1e-3, "learning rate of the last step; it falls exponentially", above=0)
    noise: float = setting(0.1, "deviation of the noise on the latents, relative to theirs", at_least=0)
    mse: float = setting(1.0, "weight of the square error beside the absolute one", at_least=0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.frames % 4 != 1:
            raise UserError(f"vae.stages: frames is {self.frames}; it must be 1, 5, 9, ...")
        for name in ("height", "width"):
            if getattr(self, name) % 16:
                raise UserError(f"vae.stages: {name} is {getattr(self, name)}; it must be a multiple of 16")


@dataclass(frozen=True, kw_only=True)
class VaeSettings(Settings):
    """The codec."""

    base_dim: int = setting(24, "channels of its first layer", at_least=1)
    z_dim: int = setting(16, "channels of its latents", at_least=1)
    check_clips: int = setting(16, "held-out clips that it is measured on at the end", at_least=1)
    stages: list[VaeStage] = setting([], "the legs of its training, in order; more may be added later")


@dataclass(frozen=True, kw_only=True)
class LatentSettings(Settings):
    """The clips that are encoded, once, for the backbone to train on."""

    clips: int = setting(960, "long clips", at_least=1)
    frames: int = setting(80, "latent frames of a long clip: a training sequence's and some to spare", at_least=1)
    starts: int = setting(1280, "short clips, which show how a video starts", at_least=1)
    start_frames: int = setting(12, "latent frames of a short clip", at_least=1)
    batch: int = setting(8, "clips encoded together", at_least=1, place=True)


@dataclass(frozen=True, kw_only=True)
class BackboneSettings(Settings):
    """The causal transformer, its text encoder and their training by teacher forcing."""

    dim: int = setting(128, "channels", at_least=1)
    ffn_dim: int = setting(512, "channels within the feed-forward layers", at_least=1)
    num_heads: int = setting(4, "attention heads", at_least=1)
    num_layers: int = setting(6, "transformer blocks", at_least=1)
    freq_dim: int = setting(64, "frequencies that encode the noise level", at_least=2)
    text_dim: int = setting(64, "channels of the text encoder, a multiple of 16", at_least=16)
    text_len: int = setting(32, "tokens of a caption", at_least=1)
    text_layers: int = setting(2, "layers of the text encoder", at_least=1)
    steps: int = setting(3000, "optimizer steps; 0 only where a training goes on from weights", at_least=0)
    frames: int = setting(48, "latent frames of a training sequence", at_least=1)
    batch: int = setting(2, "sequences a step", at_least=1)
    copies: int = setting(3, "noisy copies of each sequence", at_least=1)
    start_batch: int = setting(8, "sequences of a step that trains only how a video starts", at_least=1)
    start_blocks: int = setting(4, "blocks of such a sequence", at_least=1)
    kinds: list[float] = setting(
        [0.25, 0.3, 0.45], "shares of the steps that train: start, native, latentmem; their sum is 1", at_least=0
    )
    max_start: int = setting(120, "latest latent frame at which a sequence goes on after its first block", at_least=1)
    caption_dropout: float = setting(0.1, "share of the captions left out", at_least=0, at_most=1)
    context_noise: float = setting(0.25, "clean frames carry noise of a deviation between 0 and this", at_least=0)
    full_noise: float = setting(0.3, "share of the noisy blocks that are noise alone", at_least=0, at_most=1)
    most_memory: int = setting(6, "a latentmem step has 0 to this many memory frames", at_least=0)
    least_memory: int = setting(1, "as many at least, unless it has none", at_least=1)
    near_memory: float = setting(
        0.75, "share of the memory frames drawn near the place that the block will show", at_least=0, at_most=1
    )
    astray: float = setting(32.0, "pixels by which that place is missed at most", at_least=0)
    no_local: float = setting(0.2, "share of the latentmem steps without local frames", at_least=0, at_most=1)
    wide_local: float = setting(
        0.2, "share of the latentmem steps whose unused memory slots hold local frames", at_least=0, at_most=1
    )
    covering_memory: float = setting(
        0.0, "share of the blocks whose memory frames are drawn to show what the block uncovers", at_least=0, at_most=1
    )
    wrong_memory: float = setting(
        0.0, "share of the blocks whose memory frames are drawn from other places of the scene", at_least=0, at_most=1
    )
    strange_memory: float = setting(
        0.0, "share of the blocks whose memory frames are those of the other sequence of a step", at_least=0, at_most=1
    )
    recall_weight: float = setting(
        1.0,
        "weight of the error in columns that a block uncovers and its sink or memory shows",
        at_least=0,
        at_most=100,
    )
    other_sink: float = setting(
        0.0, "share of the latentmem steps whose sink is any earlier frame, not the first one", at_least=0, at_most=1
    )
    placed_memory: float = setting(
        0.0, "share of the latentmem steps whose memory frames have the indices after the sink, not 0",
        at_least=0, at_most=1,
    )  # fmt: skip
    lookup: float = setting(
        0.0, "weight of the loss that teaches attention to find in sink and memory the place that a token shows",
        at_least=0,
    )  # fmt: skip
    lookup_heads: list[str] = setting(["3.0", "4.0"], "the heads that are taught that, LAYER.HEAD, both counted from 0")
    ahead: float = setting(
        0.1, "weight of the loss on what the transformer's middle tells of the object and the turn to come", at_least=0
    )
    muon_lr: float = setting(3e-3, "peak learning rate of the blocks' matrices", above=0)
    adam_lr: float = setting(2e-3, "peak learning rate of all else", above=0)
    warmup: int = setting(50, "steps in which the learning rates rise", at_least=1)
    decay: float = setting(0.3, "share of the steps, the last ones, in which they fall", at_least=0, at_most=1)
    rate_end: float = setting(0.3, "part of the peak to which they fall", at_least=0, at_most=1)
    ema: float = setting(0.998, "how much of the averaged weights a step keeps", at_least=0, below=1)
    bf16_matmul: bool = setting(True, "compute the blocks' matrix products in bfloat16, where that is fast")

    def __post_init__(self) -> None:
        super().__post_init__()
        require_shares("backbone.kinds", self.kinds)
        if self.covering_memory + self.wrong_memory > 1:
            raise UserError(
                f"backbone.covering_memory {self.covering_memory} and wrong_memory {self.wrong_memory} are shares of "
                "the same blocks; their sum must be at most 1"
            )
        if self.dim % self.num_heads or self.dim // self.num_heads % 2:
            raise UserError(f"backbone.dim {self.dim} cannot be split over {self.num_heads} heads of an even size each")
        if self.lookup and not self.taught_heads():
            raise UserError("backbone.lookup is on and backbone.lookup_heads names no head; name one or more")
        if self.text_dim % 16:
            raise UserError(f"backbone.text_dim is {self.text_dim}; it must be a multiple of 16")

    def taught_heads(self) -> list[tuple[int, int]]:
        """(layer, head) of the heads that `lookup` teaches."""
        heads = []
        for name in self.lookup_heads:
            layer, _, head = name.partition(".")
            known = layer.isdecimal() and head.isdecimal()
            if not known or int(layer) >= self.num_layers or int(head) >= self.num_heads:
                raise UserError(
                    f"backbone.lookup_heads names '{name}'; it must be LAYER.HEAD, a layer of 0 to "
                    f"{self.num_layers - 1} and a head of 0 to {self.num_heads - 1}"
                )
            heads.append((int(layer), int(head)))
        return heads


@dataclass(frozen=True, kw_only=True)
class FewStepSettings(Settings):
    """Many small steps with falling learning rates, on contexts that carry the model's own errors."""

    steps: int = setting(1000, "optimizer steps", at_least=1)
    own: float = setting(0.5, "share of the context blocks that the model itself made", at_least=0, at_most=1)
    lowest: float = setting(0.2, "they are made from frames noised to a level between this and 1", at_least=0, below=1)
    invented: float = setting(
        0.0, "share of the sequences whose later context blocks the model makes of noise alone and without memory, "
        "while the frames before them stay true", at_least=0, at_most=1,
    )  # fmt: skip
    guidance: float = setting(0.0, "how far the target is moved towards what the caption changes", at_least=0, below=1)
    recall_only: float = setting(
        0.0, "share of the steps that train only the blocks to which sink and memory alone show something",
        at_least=0, at_most=1,
    )  # fmt: skip
    muon_lr: float = setting(4e-3, "first learning rate of the blocks' matrices; it falls to zero", above=0)
    adam_lr: float = setting(2e-3, "first learning rate of all else; it falls to zero", above=0)
    kinds: list[float] = setting([0.6, 0.2, 0.2], "as in backbone", at_least=0)
    batch: int = setting(1, "as in backbone", at_least=1)
    copies: int = setting(2, "as in backbone", at_least=1)
    start_batch: int = setting(8, "as in backbone", at_least=1)
    start_blocks: int = setting(2, "as in backbone", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_shares("fewstep.kinds", self.kinds)


@dataclass(frozen=True, kw_only=True)
class EncoderSettings(Settings):
    """The retrieval encoder."""

    corpus: list[str] = setting([], "key=value beside those of configs/tinyworld_generate_latent.yaml")
    training: list[str] = setting([], "key=value beside those of ae/configs/tinyworld_ae.yaml")


@dataclass(frozen=True, kw_only=True)
class TrainSettings(Settings):
    """The whole training."""

    seed: int = setting(0, "seed of all that is drawn", at_least=0, at_most=2**63 - 1)
    threads: int = setting(2, "CPU threads", at_least=1, place=True)
    workers: int = setting(0, "processes that paint, film and draw batches beside", at_least=0, place=True)
    device: str = setting("auto", "device to train on: auto, cpu, cuda or cuda:N", place=True)
    work: str = setting("runs/tinyworld", "folder of what can be resumed, with curves", place=True, writes=True)
    export: str = setting(
        "runs/tinyworld/export", "folder of the weights as the pipeline loads them", place=True, writes=True
    )
    continues: str = setting(
        "", "folder of exported weights to go on from: the codec stays as it is, the backbone is trained further",
        place=True,
    )  # fmt: skip
    generates: str = setting("configs/tinyworld_latentmem.yaml", "config of the runs whose contexts are trained")
    world: WorldSettings = setting(WorldSettings, "")
    vae: VaeSettings = setting(VaeSettings, "")
    latents: LatentSettings = setting(LatentSettings, "")
    backbone: BackboneSettings = setting(BackboneSettings, "")
    fewstep: FewStepSettings = setting(FewStepSettings, "")
    encoder: EncoderSettings = setting(EncoderSettings, "")

    def __post_init__(self) -> None:
        super().__post_init__()
        policy = self.policy()
        if not self.backbone.steps and not self.continues:
            raise UserError("backbone.steps is 0 and the training goes on from no weights; name them with continues=")
        if self.backbone.frames % policy.block:
            raise UserError(f"backbone.frames is {self.backbone.frames}; it must be a multiple of {policy.block}")
        if self.backbone.max_start // policy.block <= policy.local_attn_size // policy.block:
            raise UserError(
                f"backbone.max_start is {self.backbone.max_start}; it must be at least a block more than the "
                f"{policy.local_attn_size} frames of the window"
            )
        if self.backbone.most_memory > policy.memory_size:
            raise UserError(
                f"backbone.most_memory is {self.backbone.most_memory}; the context has {policy.memory_size}"
            )
        if self.backbone.strange_memory and min(self.backbone.batch, self.fewstep.batch) < 2:
            raise UserError(
                f"backbone.strange_memory takes frames of the other sequence; backbone.batch {self.backbone.batch} and "
                f"fewstep.batch {self.fewstep.batch} must be 2 or more"
            )
        start_frames = policy.block * max(self.backbone.start_blocks, self.fewstep.start_blocks)
        _require_long_enough("frames", self.latents.frames, self.backbone.frames)
        _require_long_enough("start_frames", self.latents.start_frames, start_frames)

    def policy(self) -> ContextPolicy:
        """The context's sizes in the runs that the backbone is trained for."""
        return load_config(self.generates).policy()


def require_shares(name: str, shares: list[float]) -> None:
    """Refuse shares of the three kinds of steps that do not make a whole."""
    if len(shares) != 3 or abs(sum(shares) - 1) > 1e-6:
        raise UserError(f"{name} is {shares}; it must be three numbers whose sum is 1")


def _require_long_enough(name: str, frames: int, due: int) -> None:
    if frames < due:
        raise UserError(f"latents.{name} is {frames}; the training sequences need at least {due}")
