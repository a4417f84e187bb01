"""Train the retrieval encoder: `python -m ae.train CONFIG [key=value ...]`, or through torchrun on several GPUs."""

import argparse
import importlib.util
from dataclasses import dataclass, replace
from pathlib import Path

from utils.errors import UserError, run
from utils.settings import load_settings, require_choice, retired_keys

RETIRED = ("config", "gpu", "disable_wandb")


@dataclass(frozen=True)
class TrainSettings:
    """A training, flat as in the published configs."""

    data_dir: str = "datasets"
    data_percentage: float = 1.0  # part of the files to use, 0 to 1
    val_split: float = 0.1
    seq_len: int = 8
    num_workers: int = 4
    strict: bool = False  # stop at a bad file; otherwise it is named, counted and skipped
    in_channels: int = 16
    spatial_h: int = 60
    spatial_w: int = 104
    latent_dim: int = 1024
    hidden_dims: tuple[int, ...] = (64, 128, 256)
    batch_size: int = 128  # over all processes
    lr: float = 3e-4
    weight_decay: float = 1e-4
    epochs: int = 400
    grad_clip: float = 1.0
    use_amp: bool = True  # mixed precision on a GPU; a CPU computes in float32
    amp_dtype: str = "fp16"
    delta_weight: float = 1.0
    delta_margin: float = 0.85
    delta_window: int = 3
    smooth_weight: float | None = None  # None: as delta_weight, so that one zero leaves reconstruction only
    seed: int = 42
    log_dir: str = "ae_runs"
    tag: str = ""  # name of the run's folder; else wandb_run_name, else the config's name
    resume: str = "auto"  # auto: go on where the run's folder stops; none; or a checkpoint
    log_every: int = 20  # steps
    save_every: int = 50  # epochs between checkpoints that are kept; 0 keeps only best and last
    save_steps: int = 500  # steps between saves within an epoch
    tracker: str = "none"
    wandb_project: str = "latent-ae"
    wandb_run_name: str = ""
    wandb_entity: str = ""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m ae.train", description="Train the retrieval encoder.")
    parser.add_argument("config", help="YAML file, e.g. configs/ae_delta.yaml")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="settings that replace the file's")
    args = parser.parse_args()
    settings = load_settings(TrainSettings, args.config, args.overrides, RETIRED)
    settings = resolve(settings, args.config)

    from ae.trainer import Trainer  # late: torch takes seconds to import, --help and a wrong key should not

    trainer = Trainer(settings)
    if old := retired_keys(args.config, RETIRED):
        trainer.say(f"note: {args.config} sets {', '.join(old)}, which changes nothing here")
    trainer.run()


def resolve(settings: TrainSettings, config: str) -> TrainSettings:
    """Fill in what depends on other settings and refuse values that cannot be meant."""
    require_choice("amp_dtype", settings.amp_dtype, ("fp16", "bf16"))
    require_choice("tracker", settings.tracker, ("none", "tensorboard", "wandb"))
    if settings.tracker != "none" and not importlib.util.find_spec(settings.tracker):
        raise UserError(f"tracker {settings.tracker} is not installed; pip install {settings.tracker}, or tracker=none")
    sizes = ("seq_len", "batch_size", "epochs", "latent_dim", "in_channels", "spatial_h", "spatial_w", "log_every")
    for name in (*sizes, "lr", "grad_clip", "data_percentage"):
        if not getattr(settings, name) > 0:
            raise UserError(f"setting '{name}' is {getattr(settings, name)} and must be above 0")
    if not settings.hidden_dims or min(settings.hidden_dims) < 1:
        raise UserError(f"setting 'hidden_dims' is {list(settings.hidden_dims)}; one width or more is needed")
    if not 0 <= settings.val_split < 1 or settings.data_percentage > 1:
        raise UserError("val_split must be 0 or more and below 1, and data_percentage at most 1")
    smooth = settings.delta_weight if settings.smooth_weight is None else settings.smooth_weight
    tag = settings.tag or settings.wandb_run_name or Path(config).stem
    return replace(settings, smooth_weight=smooth, tag=tag, hidden_dims=tuple(settings.hidden_dims))


if __name__ == "__main__":
    run(main)
