"""Settings of a training of the retrieval encoder: flat, under the keys of the published configs."""

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from pathlib import Path

from ae.params import LatentAEParams
from utils.errors import UserError
from utils.paths import read_path
from utils.settings import Settings, load_settings, places, setting

RETIRED = ("config", "gpu", "disable_wandb")  # published keys that change nothing here


@dataclass(frozen=True, kw_only=True)
class Data(Settings):
    """Data"""

    data_dir: str = setting(
        "datasets", "folder of latent_*.pt, each [frames, channels, height, width]", place=True, reads=True
    )
    data_percentage: float = setting(1.0, "part of the files to use, 0 to 1", above=0, at_most=1)
    val_split: float = setting(0.1, "part of the used files that is held out, 0 to 1", at_least=0, below=1)
    seq_len: int = setting(8, "consecutive latent frames of a chunk", at_least=1)
    num_workers: int = setting(4, "processes that load chunks; at most one a CPU core", at_least=0, place=True)
    strict: bool = setting(False, "stop at a bad file; otherwise it is named, counted and skipped", place=True)


@dataclass(frozen=True, kw_only=True)
class Losses(Settings):
    """Losses: reconstruction, and two terms on consecutive frames"""

    delta_weight: float = setting(1.0, "weight of the window temporal delta; 0 leaves it out", at_least=0, at_most=1e6)
    delta_margin: float = setting(0.85, "cosine down to which nearby frames are pushed apart", at_least=-1, at_most=1)
    delta_window: int = setting(3, "frames up to so many steps apart count as nearby", at_least=1)
    smooth_weight: float | None = setting(
        None, "weight of the smoothing term; null: delta_weight, so that one zero leaves reconstruction only",
        at_least=0, at_most=1e6,
    )  # fmt: skip

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.smooth_weight is None:
            object.__setattr__(self, "smooth_weight", self.delta_weight)


@dataclass(frozen=True, kw_only=True)
class Optimisation(Settings):
    """Optimisation: AdamW"""

    batch_size: int = setting(128, "chunks of a step, over all processes", at_least=1)
    lr: float = setting(3e-4, "learning rate", above=0, at_most=1)
    weight_decay: float = setting(1e-4, "AdamW's weight decay", at_least=0, at_most=1)
    grad_clip: float = setting(1.0, "norm to which gradients are cut", above=0)
    use_amp: bool = setting(True, "mixed precision on a GPU; a CPU computes in float32")
    amp_dtype: str = setting("fp16", "type of mixed precision", choices=("fp16", "bf16"))


@dataclass(frozen=True, kw_only=True)
class Run(Settings):
    """Run: how long, from where, and what is kept"""

    seed: int = setting(42, "of the weights, the split and the chunks", at_least=0, at_most=2**32 - 1)
    # A run may go on for longer, so its length is no part of what decides its course.
    epochs: int = setting(400, "passes over the files", at_least=1, place=True)
    log_dir: str = setting("ae_runs", "folder of the runs' folders", place=True, writes=True)
    tag: str = setting("", "name of the run's folder; empty: wandb_run_name, else the config's name", place=True)
    resume: str = setting("auto", "auto: go on where the run's folder stops; none; or a checkpoint", place=True)
    save_every: int = setting(
        50, "epochs between checkpoints that are kept; 0: only best and last", at_least=0, place=True
    )
    save_steps: int = setting(500, "steps between saves within an epoch; 0: none", at_least=0, place=True)


@dataclass(frozen=True, kw_only=True)
class Tracker(Settings):
    """Tracker: curves that others can follow"""

    log_every: int = setting(20, "steps between two points of the tracker's curves", at_least=1, place=True)
    tracker: str = setting("none", "where curves are sent", choices=("none", "tensorboard", "wandb"), place=True)
    wandb_project: str = setting("latent-ae", "project at Weights & Biases", place=True)
    wandb_run_name: str = setting("", "the run's name there, and of its folder", place=True)
    wandb_entity: str = setting("", "user or team there; empty: your default", place=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tracker != "none" and importlib.util.find_spec(self.tracker) is None:
            raise UserError(
                f"setting 'tracker' is {self.tracker}, which is not installed; pip install {self.tracker}, "
                "or tracker=none"
            )


# Python lists the fields of the last base class first.
@dataclass(frozen=True, kw_only=True)
class TrainSettings(Tracker, Run, Optimisation, Losses, LatentAEParams, Data):
    """A training of the retrieval encoder."""

    @property
    def params(self) -> LatentAEParams:
        """The model's sizes alone."""
        sizes = {field.name: getattr(self, field.name) for field in fields(LatentAEParams)}
        return LatentAEParams(**sizes)

    @property
    def folder(self) -> Path:
        """Where the run's checkpoints and curves go."""
        return Path(self.log_dir) / self.tag

    def start(self) -> Path | None:
        """The checkpoint to go on from; None to start anew."""
        if self.resume == "auto":
            last = self.folder / "last.pt"
            return last if last.is_file() else None
        if self.resume in ("", "none"):
            return None
        return read_path(self.resume)


SIZES = tuple(field.name for field in fields(LatentAEParams))


def course() -> tuple[str, ...]:
    """Names of the settings that, with the sizes and the files, decide what the training computes."""
    elsewhere = places(TrainSettings)
    names = []
    for field in fields(TrainSettings):
        if field.name not in elsewhere and field.name not in SIZES:
            names.append(field.name)
    return tuple(names)


def load_train_settings(config: str | Path, overrides: Iterable[str] = ()) -> TrainSettings:
    """Settings of a YAML file and `key=value` overrides; the run is named after the file unless they name it."""
    settings = load_settings(TrainSettings, config, overrides, RETIRED)
    name = settings.tag or settings.wandb_run_name or Path(config).stem
    if ".." in Path(name).parts or Path(name).is_absolute():
        raise UserError(f"tag '{name}' leads out of log_dir; use a name such as 'toy'")
    return replace(settings, tag=name)
