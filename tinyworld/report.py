"""How good the weights are, and the judge: `python -m tinyworld.report [key=value ...]`.

Judges true, reconstructed, generated and spoilt videos of the same held-out captions, runs the recall
experiment (`tinyworld.recall`), and writes table.json, report.md and a contact sheet.
"""

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter

from evaluation.statistics import Estimate, estimate
from pipeline import load
from pipeline.decode import to_uint8
from pipeline.pipeline import Sample
from tinyworld import judge, recall
from tinyworld.context import BLOCK
from tinyworld.corpus import Clip, held_out
from tinyworld.sight import setting
from tinyworld.vae import decode, encode, psnr, to_video
from tinyworld.world import FPS, pixel_frames
from utils.errors import UserError, run
from utils.files import atomic, require_writable, write_json
from utils.settings import load_settings
from wan.vae import load_vae

PASS = pixel_frames(judge.FIRST_PASS)  # pixel frames of the first pass


@dataclass(frozen=True)
class ReportSettings:
    """What is judged: `clips` captions over `short_frames` latent frames, `long_clips` over `long_frames`.

    Attributes:
        batch: videos generated together.
        recall_clips: clips of the recall experiment; 0 leaves it out.
        recall_first, recall_frames: its first sampled latent frame, and its length.
    """

    config: str = "configs/tinyworld_native.yaml"
    model_root: str = "wan_models"
    generator_ckpt: str = "checkpoints/tinyworld.safetensors"
    steps: list[int] | None = None
    clips: int = 64
    short_frames: int = 42
    long_clips: int = 16
    long_frames: int = 120
    recall_clips: int = 64
    recall_first: int = 42
    recall_frames: int = 51
    batch: int = 16
    seed: int = 0
    folder: str = "runs/tinyworld/report"
    sheet_clips: int = 3

    def __post_init__(self) -> None:
        for name in ("clips", "long_clips", "sheet_clips", "batch"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("short_frames", "long_frames", "recall_first", "recall_frames"):
            if getattr(self, name) % BLOCK:
                raise UserError(f"{name} {getattr(self, name)} is no multiple of {BLOCK}, the latent frames of a block")
        if self.short_frames > self.long_frames:
            raise UserError(f"short_frames {self.short_frames} is more than long_frames {self.long_frames}")
        if self.recall_clips:
            recall_settings(self)


Column = dict[str, list[float]]  # measure -> a value for each clip that has one


def main() -> None:
    settings = load_settings(ReportSettings, None, sys.argv[1:])
    folder, started = require_writable(settings.folder), time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - started:4.0f} s  {line}", flush=True)

    short = [held_out(i, pixel_frames(settings.short_frames)) for i in range(settings.clips)]
    long = [held_out(i, pixel_frames(settings.long_frames)) for i in range(settings.long_clips)]
    codec = load_vae(Path(settings.model_root) / "tinyworld" / "vae")
    frames = pixel_frames(settings.short_frames)
    shared = min(len(short), len(long))  # the long videos begin as short ones
    long_again = [reconstruct(codec, clip.video) for clip in long]
    short_again = [video[:frames] for video in long_again[:shared]]
    short_again += [reconstruct(codec, clip.video) for clip in short[shared:]]
    say("true videos reconstructed")
    long_films = generate(settings, long, settings.long_frames, say)
    short_films = [video[:frames] for video in long_films[:shared]]
    short_films += generate(settings, short[shared:], settings.short_frames, say, shared)
    columns = {
        "true": {**early([c.video for c in short], short), **whole([c.video for c in long], long)},
        "reconstructed": {**early(short_again, short), **whole(long_again, long)},
        "generated": {**early(short_films, short), **whole(long_films, long)},
        **spoilt(short, long),
    }
    columns["reconstructed"]["PSNR, dB"] = [_psnr(a, c.video) for a, c in zip(short_again, short, strict=True)]
    say("judged")
    table = {name: {measure: estimate(x) for measure, x in column.items() if x} for name, column in columns.items()}
    results, text = {name: _plain(column) for name, column in table.items()}, markdown(table)
    write(folder, results, text)
    sheet(folder / "sheet.png", min(settings.sheet_clips, len(long)), [c.video for c in long], long_again, long_films)
    if settings.recall_clips:
        found = recall.summary(recall.recall(recall_settings(settings), say))
        results["recall"], text = recall.as_json(*found), f"{text}\n\n{recall.markdown(*found)}"
        write(folder, results, text)
    print(f"{text}\n\nwritten to {folder}: report.md, table.json, sheet.png")


def write(folder: Path, results: dict, text: str) -> None:
    """Write table.json and report.md."""
    write_json(folder / "table.json", results)
    with atomic(folder / "report.md") as temporary:
        temporary.write_text(text + "\n")


def reconstruct(codec, video: np.ndarray) -> np.ndarray:
    """A video [T, H, W, 3] uint8 through encoder and decoder."""
    return to_uint8(decode(codec, encode(codec, to_video(video[None]))).transpose(1, 2))[0]


def generate(
    settings: ReportSettings, clips: list[Clip], frames: int, say: Callable[[str], None], number: int = 0
) -> list[np.ndarray]:
    """Videos of the clips' captions, each [T, H, W, 3] uint8, by the pipeline that users have.

    Args:
        number: of the first clip.
    """
    chosen = {"denoising_step_list": settings.steps} if settings.steps else {}
    pipe = load(
        settings.config,
        [clip.caption for clip in clips],
        model_root=settings.model_root,
        generator_ckpt=settings.generator_ckpt,
        num_output_frames=frames,
        seed=settings.seed,
        **chosen,
    )
    videos = []
    for first in range(0, len(clips), settings.batch):
        some = clips[first : first + settings.batch]
        samples = [Sample(clip.caption, number + first + i) for i, clip in enumerate(some)]
        videos.extend(np.concatenate(list(pipe.frames(samples)), axis=1))
        say(f"{len(videos)} of {len(clips)} videos of {frames} latent frames generated")
    return videos


def early(videos: list[np.ndarray], clips: list[Clip]) -> Column:
    """What the first 3 s, the first pass over the scene and the first 10 s show of the clips' captions."""
    pairs = list(zip(videos, clips, strict=True))
    verdicts = [judge.verdict(video, clip.meaning) for video, clip in pairs]
    column = {f"{name}, first 3 s": [float(v[name]) for v in verdicts] for name in verdicts[0]}
    if len(videos[0]) >= PASS:
        shown = [judge.objects_in_first_pass(video, clip.scene, clip.shot) for video, clip in pairs]
        column["objects in the first pass"] = [looks for looks, _ in shown]
        column["colours in the first pass"] = [colours for _, colours in shown]
        column["sightings that the caption names"] = [x for x in map(precision, videos, clips) if x is not None]
    journeys = [judge.Journey(video[: 10 * FPS]) for video in videos]
    moves = [journey.moves_as_trained(clip.shot).mean() for journey, clip in zip(journeys, clips, strict=True)]
    column["camera as trained, first 10 s"] = [float(share) for share in moves]
    column["camera as trained, first 10 s, clips"] = [float(share >= 0.9) for share in moves]
    column["motion plausible, first 10 s, clips"] = [float(j.moves_plausibly().mean() >= 0.9) for j in journeys]
    return column


def precision(video: np.ndarray, clip: Clip) -> float | None:
    """Share of the objects sighted in the first pass, frame by frame, that are among the caption's."""
    seen = [(s.colour, s.kind) for frame in judge.Journey(video[:PASS]).seen for s in frame if s.kind]
    return float(np.mean([look in clip.meaning.objects for look in seen])) if seen else None


def whole(videos: list[np.ndarray], clips: list[Clip]) -> Column:
    """What whole videos do; clips to which a measure does not apply are left out of it."""
    rows = [long_run(video, clip) for video, clip in zip(videos, clips, strict=True)]
    return {f"{name}, whole video": [row[name] for row in rows if row[name] is not None] for name in rows[0]}


def long_run(video: np.ndarray, clip: Clip) -> dict[str, float | None]:
    """What one video does from its first frame to its last; None where there is nothing to measure."""
    journey = judge.Journey(video)
    (kept, due), (in_view, seen) = journey.objects_kept(), journey.kept_in_view()
    return {
        "camera as trained": float(journey.moves_as_trained(clip.shot).mean()),
        "motion plausible": float(journey.moves_plausibly().mean()),
        **journey.revisits(),
        "objects kept": kept / due if due else None,
        "objects kept in view": in_view / seen if seen else None,
        "subject kept": journey.subject_kept(clip.meaning.subject),
        "ground and time kept": float(setting(video[-FPS:]) == (clip.meaning.ground, clip.meaning.time)),
    }


def spoilt(short: list[Clip], long: list[Clip]) -> dict[str, Column]:
    """True videos of which something is wrong.

    `early` sees whole videos spoilt, or another clip's; `whole` those whose first pass is true. The second half of
    a shuffled one is that of the next clip whose camera goes the same way.
    """
    others = short[1:] + short[:1]
    columns = {"other caption": early([clip.video for clip in others], short)}
    for name, change in CHANGES.items():
        columns[name] = {
            **early([change(clip.video) for clip in short], short),
            **whole([np.concatenate([c.video[:PASS], change(c.video[PASS:])]) for c in long], long),
        }
    partners = [same_way(long, i) for i in range(len(long))]
    shuffled = [np.concatenate([c.video[:PASS], o.video[PASS:]]) for c, o in zip(long, partners, strict=True)]
    columns["shuffled halves"] = whole(shuffled, long)
    columns["standing still"] = whole([np.repeat(c.video[:1], len(c.video), 0) for c in long], long)
    return columns


def recolour(video: np.ndarray) -> np.ndarray:
    """Red, green and blue exchanged."""
    return video[..., [1, 2, 0]]


def blur(video: np.ndarray) -> np.ndarray:
    """A Gaussian of 3 pixels over every frame."""
    if not len(video):
        return video
    return np.stack([np.asarray(Image.fromarray(frame).filter(ImageFilter.GaussianBlur(3))) for frame in video])


CHANGES = {"recoloured": recolour, "blurred": blur}


def same_way(clips: list[Clip], index: int) -> Clip:
    """The next clip whose camera starts in the same direction, the next one at all if there is none."""
    rest = clips[index + 1 :] + clips[:index]
    return next((clip for clip in rest if clip.shot.direction == clips[index].shot.direction), (rest or clips)[0])


def recall_settings(settings: ReportSettings) -> recall.RecallSettings:
    return recall.RecallSettings(
        model_root=settings.model_root,
        generator_ckpt=settings.generator_ckpt,
        steps=settings.steps,
        clips=settings.recall_clips,
        first=settings.recall_first,
        frames=settings.recall_frames,
        batch=min(settings.batch, settings.recall_clips),
        seed=settings.seed,
    )


def markdown(table: dict[str, dict[str, Estimate]]) -> str:
    """The table, a row for each measure: means over clips, and 95% intervals in the generated column."""
    rows = list(dict.fromkeys(name for column in table.values() for name in column))
    lines = ["| | " + " | ".join(table) + " |", "|---" * (1 + len(table)) + "|"]
    for row in rows:
        cells = [_cell(column.get(row), name == "generated") for name, column in table.items()]
        lines.append(f"| {row} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def sheet(path: Path, clips: int, *kinds: list[np.ndarray], seconds: tuple[int, ...] = (1, 10, 30)) -> None:
    """Frames at these seconds: a row for each clip, and so many columns for each kind of video."""
    rows = []
    for i in range(clips):
        frames = [video[i][min(FPS * s, len(video[i]) - 1)] for video in kinds for s in seconds]
        rows.append(np.concatenate([np.pad(f, ((2, 2), (2, 2), (0, 0)), constant_values=255) for f in frames], 1))
    picture = Image.fromarray(np.concatenate(rows))
    with atomic(path) as temporary:
        picture.resize((picture.width * 2, picture.height * 2)).save(temporary, optimize=True)


def _cell(found: Estimate | None, interval: bool) -> str:
    if found is None:
        return ""
    return f"{found:.2f}" if interval else f"{found.mean:.2f}"


def _plain(column: dict[str, Estimate]) -> dict[str, dict]:
    return {measure: asdict(found) for measure, found in column.items()}


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    return psnr(np.square((a.astype(np.float32) - b.astype(np.float32)) / 127.5).mean())


if __name__ == "__main__":
    run(main)
