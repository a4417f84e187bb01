"""How good the weights are, and the judge: `python -m tinyworld.report [key=value ...]`.

Judges true, reconstructed and generated videos of the same held-out captions, runs the experiment of
`tinyworld.oracle_memory`, and writes table.json, report.md and a contact sheet.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from evaluation.compare.statistics import Estimate, estimate
from pipeline.config import RunConfig, load_config
from pipeline.context import ContextPolicy
from pipeline.preflight import preflight
from tinyworld import films, oracle_memory
from tinyworld.judging.measure import caption_shown, captioned_share, measure
from tinyworld.judging.objects import detect_all, objects_in_first_pass
from tinyworld.judging.track import CameraTrack
from tinyworld.training.vae import psnr
from tinyworld.world.film import Clip, held_out
from tinyworld.world.scene import FIRST_PASS, FPS, ONE_LATENT, pixel_frames
from utils.errors import UserError, run
from utils.files import atomic, require_writable, write_json
from utils.settings import Settings, load_settings, setting
from utils.table import markdown
from wan.vae import load_vae, read_vae

PASS = pixel_frames(FIRST_PASS)  # pixel frames of the first pass
WHOLE_VIDEO = (
    "camera as trained",
    "motion plausible",
    "revisit error",
    "revisit PSNR",
    "revisit consistency",
    "new content",
    "motion",
    "came back",
    "objects kept",
    "objects kept in view",
    "subject kept",
    "ground and time kept",
)
Column = dict[str, list[float]]  # measure -> a value for each clip that has one


@dataclass(frozen=True, kw_only=True)
class ReportSettings(Settings):
    """What is judged."""

    config: str = setting("configs/tinyworld_native.yaml", "config that the videos are generated with")
    model_root: str = setting("wan_models", "folder of the model's parts", place=True, reads=True)
    generator_ckpt: str = setting("checkpoints/tinyworld.safetensors", "the transformer's weights", place=True)
    steps: list[int] | None = setting(None, "denoising steps instead of the config's", at_least=1, at_most=1000)
    clips: int = setting(64, "captions judged on short videos", at_least=1)
    short_frames: int = setting(42, "latent frames of a short video", at_least=1)
    long_clips: int = setting(16, "captions judged on long videos", at_least=1)
    long_frames: int = setting(120, "latent frames of a long video", at_least=1)
    recall_clips: int = setting(64, "clips of tinyworld.oracle_memory; 0 leaves it out", at_least=0)
    recall_first: int = setting(42, "its first sampled latent frame", at_least=1)
    recall_frames: int = setting(51, "its latent frames", at_least=1)
    batch: int = setting(16, "videos generated together", at_least=1)
    seed: int = setting(0, "seed of the noise", at_least=0, at_most=2**63 - 1)
    folder: str = setting("runs/tinyworld/report", "where the report goes", place=True, writes=True)
    sheet_clips: int = setting(3, "rows of the contact sheet", at_least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        block = self.policy().block
        for name in ("short_frames", "long_frames", "recall_first", "recall_frames"):
            if getattr(self, name) % block:
                raise UserError(f"{name} {getattr(self, name)} is no multiple of {block}, the latent frames of a block")
        if self.short_frames > self.long_frames:
            raise UserError(f"short_frames {self.short_frames} is more than long_frames {self.long_frames}")
        if self.recall_clips:
            self.oracle_settings()

    def codec(self) -> Path:
        """The autoencoder that true videos are passed through."""
        return Path(self.model_root) / "tinyworld" / "vae"

    def run_config(self, frames: int) -> RunConfig:
        """The settings that videos of so many latent frames are generated with."""
        return load_config(self.config, films.overrides(self.weights(), frames))

    def weights(self) -> films.Weights:
        return films.Weights(self.model_root, self.generator_ckpt, self.steps, self.seed)

    def policy(self) -> ContextPolicy:
        """The sizes of the context that the videos are generated with."""
        return load_config(self.config).policy()

    def oracle_settings(self) -> oracle_memory.OracleSettings:
        return oracle_memory.OracleSettings(
            model_root=self.model_root,
            generator_ckpt=self.generator_ckpt,
            steps=self.steps,
            clips=self.recall_clips,
            first=self.recall_first,
            frames=self.recall_frames,
            batch=min(self.batch, self.recall_clips),
            seed=self.seed,
        )


@dataclass(frozen=True)
class Videos:
    """Videos of one kind, each [T, H, W, 3] uint8: long ones, and short ones of more captions."""

    short: list[np.ndarray]
    long: list[np.ndarray]


def main() -> None:
    settings = load_settings(ReportSettings, None, sys.argv[1:])
    look(settings)
    folder = require_writable(settings.folder)
    say = _clock()
    short = [held_out(index, pixel_frames(settings.short_frames)) for index in range(settings.clips)]
    long = [held_out(index, pixel_frames(settings.long_frames)) for index in range(settings.long_clips)]
    kinds = {
        "true": Videos([clip.video for clip in short], [clip.video for clip in long]),
        "reconstructed": reconstructed(settings, short, long),
        "generated": generated(settings, short, long, say),
    }
    window = settings.policy().local_attn_size
    columns = {}
    for name, videos in kinds.items():
        columns[name] = {**early(videos.short, short), **whole(videos.long, long, window)}
        say(f"{name} videos judged")
    columns["reconstructed"]["PSNR, dB"] = list(map(_psnr, kinds["reconstructed"].short, kinds["true"].short))
    table = estimates(columns)
    text = report_table(table)
    results = {}
    for name, column in table.items():
        results[name] = {measure: asdict(found) for measure, found in column.items()}
    write(folder, results, text)
    films.draw_sheet(
        folder / "sheet.png", [videos.long for videos in kinds.values()], min(settings.sheet_clips, len(long))
    )
    if settings.recall_clips:
        errors = oracle_memory.measure_errors(settings.oracle_settings(), say)
        means, differences = oracle_memory.summary(errors)
        results["recall"] = oracle_memory.as_json(means, differences)
        text = f"{text}\n\n{oracle_memory.table(means, differences)}"
        write(folder, results, text)
    print(f"{text}\n\nwritten to {folder}: report.md, table.json, sheet.png")


def look(settings: ReportSettings) -> None:
    """Refuse what no video can be made of, before any is painted or made.

    Raises:
        UserError: names the setting or file.
    """
    for frames in (settings.short_frames, settings.long_frames):
        preflight(settings.run_config(frames))
    if settings.recall_clips:
        preflight(settings.oracle_settings().run_config())
    read_vae(settings.codec())


def reconstructed(settings: ReportSettings, short: Sequence[Clip], long: Sequence[Clip]) -> Videos:
    """True videos through the codec and back."""
    codec = load_vae(settings.codec())
    long_videos = [films.reconstruct(codec, clip.video) for clip in long]
    shared = min(len(short), len(long))
    more = [films.reconstruct(codec, clip.video) for clip in short[shared:]]
    return _with_short_ones(long_videos, more, settings)


def generated(
    settings: ReportSettings, short: Sequence[Clip], long: Sequence[Clip], say: Callable[[str], None]
) -> Videos:
    """What the pipeline makes of the captions."""
    weights = settings.weights()
    long_videos = films.generate(settings.config, weights, long, settings.long_frames, settings.batch, say=say)
    shared = min(len(short), len(long))
    more = films.generate(
        settings.config, weights, short[shared:], settings.short_frames, settings.batch, first=shared, say=say
    )
    return _with_short_ones(long_videos, more, settings)


def early(videos: Sequence[np.ndarray], clips: Sequence[Clip]) -> Column:
    """What the first 3 s, the first pass over the scene and the first 10 s show of the clips' captions."""
    column: Column = {}

    def add(name: str, value: float | None) -> None:
        values = column.setdefault(name, [])
        if value is not None:
            values.append(float(value))

    for video, clip in zip(videos, clips, strict=True):
        for name, shown in caption_shown(video, clip.meaning).items():
            add(f"{name}, first 3 s", shown)
        if len(video) >= PASS:
            in_look, in_colour = objects_in_first_pass(detect_all(video[:PASS]), clip.scene, clip.shot)
            add("objects in the first pass", in_look)
            add("colours in the first pass", in_colour)
            add("sightings that the caption names", captioned_share(video, clip.meaning))
        track = CameraTrack.of(video[: 10 * FPS : ONE_LATENT])
        as_trained = track.as_trained(clip.shot).mean()
        add("camera as trained, first 10 s", as_trained)
        add("camera as trained, first 10 s, clips", as_trained >= 0.9)
        add("motion plausible, first 10 s, clips", track.plausible().mean() >= 0.9)
    return column


def whole(videos: Sequence[np.ndarray], clips: Sequence[Clip], window: int) -> Column:
    """What whole videos do; clips to which a measure does not apply are left out of it."""
    column: Column = {}
    for video, clip in zip(videos, clips, strict=True):
        found = measure(video, clip, window)
        for name in WHOLE_VIDEO:
            values = column.setdefault(f"{name}, whole video", [])
            if found[name] is not None:
                values.append(found[name])
    return column


def estimates(columns: dict[str, Column]) -> dict[str, dict[str, Estimate]]:
    """Means with intervals over clips, of the measures that a column has values for."""
    table = {}
    for name, column in columns.items():
        table[name] = {}
        for measured, values in column.items():
            if values:
                table[name][measured] = estimate(values)
    return table


def report_table(table: dict[str, dict[str, Estimate]]) -> str:
    """Markdown, a row for each measure: means over clips, and 95% intervals in the generated column."""
    measures: dict[str, None] = {}  # in order, each once
    for column in table.values():
        measures.update(dict.fromkeys(column))
    rows = [["", *table]]
    for name in measures:
        row = [name]
        for kind, column in table.items():
            row.append(_cell(column.get(name), with_interval=kind == "generated"))
        rows.append(row)
    return markdown(rows)


def write(folder: Path, results: dict, text: str) -> None:
    """Write table.json and report.md."""
    write_json(folder / "table.json", results)
    with atomic(folder / "report.md") as temporary:
        temporary.write_text(text + "\n")


def _clock() -> Callable[[str], None]:
    """A printer of lines that says how many seconds have passed."""
    started = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:4.0f} s  {line}", flush=True)

    return say


def _with_short_ones(long: list[np.ndarray], more: list[np.ndarray], settings: ReportSettings) -> Videos:
    """The long videos' beginnings are short videos already; `more` are those of the other captions."""
    frames = pixel_frames(settings.short_frames)
    beginnings = [video[:frames] for video in long[: settings.clips]]
    return Videos(beginnings + more, long)


def _cell(found: Estimate | None, with_interval: bool) -> str:
    if found is None:
        return ""
    return f"{found:.2f}" if with_interval else f"{found.mean:.2f}"


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    difference = (a.astype(np.float32) - b.astype(np.float32)) / 127.5
    return psnr(np.square(difference).mean())


if __name__ == "__main__":
    run(main)
