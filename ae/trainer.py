"""The training loop: batches to losses to steps, on one process or many, resumable at any batch."""

import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm import tqdm

from ae import checkpoint
from ae.checkpoint import Progress
from ae.dataset import Batches, LatentChunks, scan
from ae.losses import Losses, chunk_losses, weighted
from ae.model import LatentAE
from ae.preflight import require_room
from ae.settings import TrainSettings
from utils.claim import claim
from utils.errors import UserError
from utils.worker import end_with


class Trainer:
    """One training: model, optimizer and data of this process, and where it stands.

    Args:
        train: files to train on.
        held_out: files that are only measured.
    """

    def __init__(self, settings: TrainSettings, train: list[Path], held_out: list[Path]) -> None:
        self.settings = settings
        self.config = plain(settings)
        self.folder = settings.folder
        self.files = names(train, held_out)
        self.progress = Progress()
        self.skipped: set[str] = set()

        torch.manual_seed(settings.seed)
        model = LatentAE(settings.params)
        optimizer = torch.optim.AdamW(model.parameters(), settings.lr, weight_decay=settings.weight_decay)
        self.accelerator = _accelerator(settings, self.folder)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)

        rank = self.accelerator.process_index
        world = self.accelerator.num_processes
        self.batches = Batches(len(train), settings.batch_size, settings.seed, rank, world)
        self.train_loader = self._loader(train, self.batches)
        same_every_epoch = list(Batches(len(held_out), settings.batch_size, settings.seed))
        self.val_loader = self._loader(held_out, same_every_epoch[rank::world])

    @classmethod
    def start(cls, settings: TrainSettings) -> "Trainer":
        """Look at the files, at the checkpoint to go on from and at the disk, before anything is made.

        Raises:
            UserError: no file can be used, the run's folder cannot hold the checkpoints, or `resume` does not fit.
        """
        params = settings.params
        shape = (params.in_channels, params.spatial_h, params.spatial_w)
        corpus = scan(settings.data_dir, shape, settings.seq_len, settings.strict)
        train, held_out = corpus.split(settings.val_split, settings.seed, settings.data_percentage)
        if start := settings.start():
            checkpoint.read(start, plain(settings), names(train, held_out), exact=settings.resume == "auto")
        require_room(settings)
        trainer = cls(settings, train, held_out)
        for complaint in corpus.skipped:
            trainer._skip(complaint)
        return trainer

    def run(self) -> None:
        """Train from where an earlier run stopped to the last epoch; curves and checkpoints land in its folder.

        Raises:
            UserError: another training is at work in the folder, or the loss is no number any more.
        """
        with self._alone():
            self.progress = self._resume()
            self._announce()
            self._train()
        for tracker in self.accelerator.trackers:  # all of `end_training` but leaving the group, see `errors.leave`
            tracker.finish()
        if self.skipped:
            self.say(f"{len(self.skipped)} bad files were skipped (named above)")
        self.say(f"best loss {self.progress.best:.4f}; checkpoints and curves are in {self.folder}")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the run's folder against other trainings; one process does so for all of this one's."""
        if not self.accelerator.is_main_process:
            self.accelerator.wait_for_everyone()
            yield
            return
        with claim(self.folder, {"what": "a training"}) as held:
            if not held.take("training"):
                raise UserError(
                    f"another training is at work in {self.folder}; wait until it ends, or set another tag="
                )
            self.accelerator.wait_for_everyone()
            yield

    def _train(self) -> None:
        for epoch in range(self.progress.epoch, self.settings.epochs):
            self._train_epoch(epoch)
            self._finish_epoch(epoch, self._validate())
        if self.accelerator.is_main_process and self.progress.history and (self.folder / "best.pt").is_file():
            self._conclude()
        self.accelerator.wait_for_everyone()  # the first process is the others' meeting place to the end

    def say(self, line: str) -> None:
        """One line from the main process, also while a progress bar is up."""
        if self.accelerator.is_main_process:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def _train_epoch(self, epoch: int) -> None:
        progress = self.progress
        settings = self.settings
        self.batches.epoch = epoch
        self.batches.skip = progress.batch
        sums = torch.tensor(progress.sums, dtype=torch.float64)
        if not self.accelerator.is_main_process:
            sums.zero_()  # what was summed before a resume is counted once
        sums = sums.to(self.accelerator.device)
        self.model.train()
        for chunks in self._watch(self.train_loader, epoch):
            losses = self._step(chunks)
            sums += weighted(losses, len(chunks))
            progress.batch += 1
            progress.step += 1
            if progress.step % settings.log_every == 0:
                self._log("train", losses)
            if settings.save_steps and progress.batch % settings.save_steps == 0:
                progress.sums = self.accelerator.reduce(sums).tolist()
                self._save("last.pt")
        progress.sums = self.accelerator.reduce(sums).tolist()

    def _step(self, chunks: torch.Tensor) -> Losses:
        """One optimizer step on chunks [B, S, C, H, W]."""
        self.optimizer.zero_grad()
        try:
            losses = self._losses(self.model, chunks)
            self.accelerator.backward(losses.total)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"the GPU's memory is full with batch_size {self.settings.batch_size} and seq_len "
                f"{self.settings.seq_len}; lower one, or use more GPUs"
            ) from error
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.settings.grad_clip)
        self.optimizer.step()
        return Losses(*(value.detach() for value in losses))

    @torch.no_grad()
    def _validate(self) -> list[float]:
        """Sums over the held-out files: chunks, then each loss times its chunks."""
        model = self.accelerator.unwrap_model(self.model).eval()  # processes may have unequal numbers of batches
        sums = torch.zeros(1 + len(Losses._fields), dtype=torch.float64, device=self.accelerator.device)
        for chunks, complaints in self.val_loader:
            self._hear(complaints)
            with self.accelerator.autocast():
                losses = self._losses(model, chunks.to(self.accelerator.device))
            sums += weighted(losses, len(chunks))
        return self.accelerator.reduce(sums).tolist()

    def _losses(self, model: torch.nn.Module, chunks: torch.Tensor) -> Losses:
        recon, z = model(chunks)
        return chunk_losses(
            chunks,
            recon,
            z,
            delta_weight=self.settings.delta_weight,
            delta_margin=self.settings.delta_margin,
            delta_window=self.settings.delta_window,
            smooth_weight=self.settings.smooth_weight,
        )

    def _finish_epoch(self, epoch: int, val_sums: list[float]) -> None:
        """Add a row to the curves, keep the best, and save where the next epoch begins."""
        progress = self.progress
        row = progress.row(val_sums)
        if not math.isfinite(row["train_total"] + row["val_total"]):
            raise UserError(f"the loss is {row['train_total']} in epoch {epoch + 1}; lower lr, or set use_amp=false")
        progress.history.append(row)
        progress.begin(epoch + 1)
        improved = row["val_total"] < progress.best
        if improved:
            progress.best = row["val_total"]
            self._save("best.pt")
        if self.settings.save_every and (epoch + 1) % self.settings.save_every == 0:
            self._save(f"epoch_{epoch + 1:04d}.pt")
        self._save("last.pt")
        if self.accelerator.is_main_process:
            checkpoint.write_curve(self.folder / "curve.csv", progress.history)
        self._report(row)

    def _report(self, row: dict[str, float]) -> None:
        """Say how the last epoch went, and send it to the tracker."""
        held_out = {name: value for name, value in row.items() if name.startswith("val_")}
        self.accelerator.log(held_out, step=self.progress.step)
        losses = [f"{name} {row[f'train_{name}']:.4f}" for name in Losses._fields]
        title = f"epoch {row['epoch'] + 1}/{self.settings.epochs}"
        self.say(f"{title}: {' '.join(losses)}, held out {row['val_total']:.4f}")

    def _save(self, name: str) -> None:
        if self.accelerator.is_main_process:
            model = self.accelerator.unwrap_model(self.model)
            scaler = self.accelerator.scaler
            checkpoint.save(self.folder / name, model, self.optimizer, scaler, self.config, self.progress, self.files)

    def _resume(self) -> Progress:
        """Load the state that `resume` names, if there is one; where it stands."""
        start = self.settings.start()
        if start is None:
            return Progress()
        model = self.accelerator.unwrap_model(self.model)
        state = (model, self.optimizer, self.accelerator.scaler)
        progress = checkpoint.resume(start, *state, self.config, self.files, exact=self.settings.resume == "auto")
        self.say(f"resumed {start} at epoch {progress.epoch + 1}, batch {progress.batch + 1}")
        return progress

    def _announce(self) -> None:
        settings = self.settings
        train = len(self.files["train"])
        held_out = len(self.files["val"])
        self.say(
            f"{train} files to train on, {held_out} held out; {len(self.batches)} batches an epoch on "
            f"{self.accelerator.num_processes} x {self.accelerator.device.type} ({self.accelerator.mixed_precision})"
        )
        if train < settings.batch_size:
            self.say(f"fewer files than batch_size {settings.batch_size}: each epoch is one batch of {train}")
        if not held_out:
            self.say("no file is held out: the training loss decides which checkpoint is best")
        if self.progress.epoch >= settings.epochs:
            self.say(f"all {settings.epochs} epochs are done; raise epochs= to go on or start anew with resume=none")
        wandb = {"name": settings.tag, "entity": settings.wandb_entity or None}
        flat = {}
        for key, value in self.config.items():
            flat[key] = value if isinstance(value, int | float | str) else str(value)
        self.accelerator.init_trackers(settings.wandb_project, flat, {"wandb": wandb})

    def _watch(self, loader: DataLoader, epoch: int) -> Iterator[torch.Tensor]:
        """The loader's chunks on this device; a bar on a terminal, complaints counted."""
        quiet = not (self.accelerator.is_main_process and sys.stderr.isatty())
        title = f"epoch {epoch + 1}"
        bar = tqdm(loader, title, len(self.batches), initial=self.batches.skip, leave=False, disable=quiet)
        try:
            for chunks, complaints in bar:
                self._hear(complaints)
                yield chunks.to(self.accelerator.device, non_blocking=True)
        except UserError as error:  # a loader's worker puts its traceback before the message
            last_line = str(error).strip().splitlines()[-1]
            raise UserError(last_line.removeprefix("utils.errors.UserError: ")) from error
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise UserError(
                f"a process that loads data was killed, most likely because the memory is full; lower num_workers "
                f"({loader.num_workers}) or batch_size ({self.settings.batch_size}), then the same command goes on"
            ) from error

    def _hear(self, complaints: list[str]) -> None:
        for complaint in filter(None, complaints):
            if self.settings.strict:
                raise UserError(complaint)
            self._skip(complaint)

    def _skip(self, complaint: str) -> None:
        if complaint not in self.skipped:
            self.skipped.add(complaint)
            self.say(f"skipped: {complaint}")

    def _log(self, name: str, losses: Losses) -> None:
        values = {f"{name}_{key}": value.item() for key, value in losses._asdict().items()}
        self.accelerator.log(values, step=self.progress.step)

    def _conclude(self) -> None:
        from ae.plots import draw_curve

        checkpoint.export(self.folder / "best.pt", self.folder / "encoder.safetensors")
        checkpoint.write_curve(self.folder / "curve.csv", self.progress.history)
        draw_curve(self.progress.history, self.folder / "curve.png")

    def _loader(self, files: list[Path], batches: Any) -> DataLoader:
        workers = min(self.settings.num_workers, os.cpu_count() or 1)
        return DataLoader(
            LatentChunks(files, self.settings.seq_len),
            batch_sampler=batches,
            num_workers=workers,
            worker_init_fn=partial(_end_with, os.getpid()),
            persistent_workers=workers > 0,
            pin_memory=self.accelerator.device.type == "cuda",
        )


def plain(settings: TrainSettings) -> dict[str, Any]:
    """The settings as they are kept in checkpoints."""
    return asdict(settings) | {"hidden_dims": list(settings.hidden_dims)}


def names(train: list[Path], held_out: list[Path]) -> dict[str, list[str]]:
    """The names of the files, as they are kept in checkpoints."""
    return {"train": [path.name for path in train], "val": [path.name for path in held_out]}


def _end_with(parent: int, worker: int) -> None:
    """Have a process that loads data end when this one does, however that ends."""
    end_with(parent)


def _accelerator(settings: TrainSettings, folder: Path) -> Accelerator:
    cpu = not torch.cuda.is_available()
    if cpu:
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # accelerate warns where it is not set
    precision = settings.amp_dtype if settings.use_amp and not cpu else "no"
    tracker = None if settings.tracker == "none" else settings.tracker
    return Accelerator(cpu=cpu, mixed_precision=precision, log_with=tracker, project_dir=folder)
