"""The training loop: batches to losses to steps, on one process or many, resumable at any batch."""

import math
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ae import checkpoint
from ae.checkpoint import Progress
from ae.dataset import Batches, LatentChunks, scan
from ae.losses import Losses, chunk_losses
from ae.model import LatentAE, LatentAEParams
from ae.train import TrainSettings
from utils.errors import UserError
from utils.files import require_writable


class Trainer:
    """One training: data, model and optimizer of this process, and where it stands."""

    def __init__(self, settings: TrainSettings):
        self.settings = settings
        self.config = asdict(settings) | {"hidden_dims": list(settings.hidden_dims)}
        self.folder = Path(settings.log_dir) / settings.tag
        params = LatentAEParams(**{f.name: getattr(settings, f.name) for f in fields(LatentAEParams)})
        shape = (params.in_channels, params.spatial_h, params.spatial_w)
        corpus = scan(settings.data_dir, shape, settings.seq_len, settings.strict)
        train, val = corpus.split(settings.val_split, settings.seed, settings.data_percentage)
        self.files = {"train": [p.name for p in train], "val": [p.name for p in val]}

        torch.manual_seed(settings.seed)
        model = LatentAE(params)
        state_bytes = 3 * sum(p.nbytes for p in model.parameters())  # the optimizer keeps two numbers a weight
        kept = settings.epochs // settings.save_every if settings.save_every else 0
        require_writable(self.folder, need_bytes=(3 + kept) * state_bytes)  # best, last, and the one being written
        self.accelerator = accelerator = _accelerator(settings, self.folder)
        optimizer = torch.optim.AdamW(model.parameters(), settings.lr, weight_decay=settings.weight_decay)
        self.model, self.optimizer = accelerator.prepare(model, optimizer)

        rank, world = accelerator.process_index, accelerator.num_processes
        self.batches = Batches(len(train), settings.batch_size, settings.seed, rank, world)
        held_out = list(Batches(len(val), settings.batch_size, settings.seed))[rank::world]
        self.train_loader = self._loader(LatentChunks(train, settings.seq_len), self.batches)
        self.val_loader = self._loader(LatentChunks(val, settings.seq_len), held_out)  # the same chunks every epoch

        self.skipped: set[str] = set()
        for complaint in corpus.skipped:
            self._skip(complaint)
        self.progress = self._resume()

    def run(self) -> None:
        """Train to the last epoch; curves and checkpoints land in the run's folder."""
        self._announce()
        for epoch in range(self.progress.epoch, self.settings.epochs):
            self._train_epoch(epoch)
            self._finish_epoch(epoch, self._validate())
        if self.accelerator.is_main_process and self.progress.history and (self.folder / "best.pt").is_file():
            self._conclude()
        self.accelerator.end_training()
        if self.skipped:
            self.say(f"{len(self.skipped)} bad files were skipped (named above)")
        self.say(f"best loss {self.progress.best:.4f}; checkpoints and curves are in {self.folder}")

    def say(self, line: str) -> None:
        """One line from the main process, also while a progress bar is up."""
        if self.accelerator.is_main_process:
            tqdm.write(line, file=sys.stdout)
            sys.stdout.flush()

    def _train_epoch(self, epoch: int) -> None:
        progress, settings = self.progress, self.settings
        self.batches.epoch, self.batches.skip = epoch, progress.batch
        sums = torch.tensor(progress.sums, dtype=torch.float64)
        if not self.accelerator.is_main_process:
            sums.zero_()  # what was summed before a resume is counted once
        sums = sums.to(self.accelerator.device)
        self.model.train()
        for chunks in self._watch(self.train_loader, epoch):
            losses = self._step(chunks)
            sums += _weighted(losses, len(chunks))
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
        losses = self._losses(self.model, chunks)
        self.accelerator.backward(losses.total)
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
            sums += _weighted(losses, len(chunks))
        return self.accelerator.reduce(sums).tolist()

    def _losses(self, model: torch.nn.Module, chunks: torch.Tensor) -> Losses:
        s = self.settings
        recon, z = model(chunks)
        return chunk_losses(chunks, recon, z, s.delta_weight, s.delta_margin, s.delta_window, s.smooth_weight)

    def _finish_epoch(self, epoch: int, val_sums: list[float]) -> None:
        """Add a row to the curves, keep the best, and save where the next epoch begins."""
        progress = self.progress
        row: dict[str, float] = {"epoch": epoch, "step": progress.step}
        row |= {f"train_{k}": v for k, v in _averages(progress.sums).items()}
        row |= {f"val_{k}": v for k, v in _averages(val_sums if val_sums[0] else progress.sums).items()}
        if not math.isfinite(row["train_total"] + row["val_total"]):
            raise UserError(f"the loss is {row['train_total']} in epoch {epoch + 1}; lower lr, or set use_amp=false")
        progress.history.append(row)
        progress.epoch, progress.batch, progress.sums = epoch + 1, 0, Progress().sums
        improved = row["val_total"] < progress.best
        progress.best = min(progress.best, row["val_total"])
        if improved:
            self._save("best.pt")
        if self.settings.save_every and (epoch + 1) % self.settings.save_every == 0:
            self._save(f"epoch_{epoch + 1:04d}.pt")
        self._save("last.pt")
        if self.accelerator.is_main_process:
            checkpoint.write_curve(self.folder / "curve.csv", progress.history)
        self.accelerator.log({k: v for k, v in row.items() if k.startswith("val_")}, step=progress.step)
        parts = " ".join(f"{name} {row[f'train_{name}']:.4f}" for name in Losses._fields)
        self.say(f"epoch {epoch + 1}/{self.settings.epochs}: {parts}, held out {row['val_total']:.4f}")

    def _save(self, name: str) -> None:
        if self.accelerator.is_main_process:
            model = self.accelerator.unwrap_model(self.model)
            scaler = self.accelerator.scaler
            checkpoint.save(self.folder / name, model, self.optimizer, scaler, self.config, self.progress, self.files)

    def _resume(self) -> Progress:
        last = self.folder / "last.pt"
        choice = {"": "none", "auto": str(last) if last.is_file() else "none"}.get(
            self.settings.resume, self.settings.resume
        )
        if choice == "none":
            return Progress()
        model = self.accelerator.unwrap_model(self.model)
        exact = self.settings.resume == "auto"
        state = (self.optimizer, self.accelerator.scaler, self.config, self.files, exact)
        progress = checkpoint.resume(Path(choice), model, *state)
        self.say(f"resumed {choice} at epoch {progress.epoch + 1}, batch {progress.batch + 1}")
        return progress

    def _announce(self) -> None:
        settings, train, val = self.settings, len(self.files["train"]), len(self.files["val"])
        self.say(
            f"{train} files to train on, {val} held out; {len(self.batches)} batches an epoch on "
            f"{self.accelerator.num_processes} x {self.accelerator.device.type} ({self.accelerator.mixed_precision})"
        )
        if train < settings.batch_size:
            self.say(f"fewer files than batch_size {settings.batch_size}: each epoch is one batch of {train}")
        if not val:
            self.say("no file is held out: the training loss decides which checkpoint is best")
        if self.progress.epoch >= settings.epochs:
            self.say(f"all {settings.epochs} epochs are done; raise epochs= to go on or start anew with resume=none")
        names = {"name": settings.tag, "entity": settings.wandb_entity or None}
        flat = {k: v if isinstance(v, int | float | str) else str(v) for k, v in self.config.items()}
        self.accelerator.init_trackers(settings.wandb_project, flat, {"wandb": names})

    def _watch(self, loader: DataLoader, epoch: int) -> Iterator[torch.Tensor]:
        """The loader's chunks on this device; a bar on a terminal, complaints counted."""
        quiet = not (self.accelerator.is_main_process and sys.stderr.isatty())
        total, title = len(self.batches), f"epoch {epoch + 1}"
        try:
            for chunks, complaints in tqdm(loader, title, total, initial=self.batches.skip, leave=False, disable=quiet):
                self._hear(complaints)
                yield chunks.to(self.accelerator.device, non_blocking=True)
        except UserError as error:  # a loader's worker puts its traceback before the message
            raise UserError(str(error).strip().splitlines()[-1].removeprefix("utils.errors.UserError: ")) from error

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

    def _loader(self, dataset: Dataset, batches: Any) -> DataLoader:
        workers = min(self.settings.num_workers, os.cpu_count() or 1)
        pin = self.accelerator.device.type == "cuda"
        return DataLoader(
            dataset, batch_sampler=batches, num_workers=workers, persistent_workers=workers > 0, pin_memory=pin
        )


def _accelerator(settings: TrainSettings, folder: Path) -> Accelerator:
    cpu = not torch.cuda.is_available()
    if cpu:
        os.environ.setdefault("OMP_NUM_THREADS", str(torch.get_num_threads()))  # accelerate warns where it is not set
    precision = settings.amp_dtype if settings.use_amp and not cpu else "no"
    tracker = None if settings.tracker == "none" else settings.tracker
    return Accelerator(cpu=cpu, mixed_precision=precision, log_with=tracker, project_dir=folder)


def _weighted(losses: Losses, chunks: int) -> torch.Tensor:
    return torch.stack([torch.ones_like(losses.total), *losses]).double().detach() * chunks


def _averages(sums: list[float]) -> dict[str, float]:
    return {name: value / sums[0] for name, value in zip(Losses._fields, sums[1:], strict=True)}
