"""What can be asked for here: a backbone, its methods and their settings; from a request to a run's settings."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from pipeline.backbones import METHODS, arguments
from pipeline.config import RunConfig, load_config
from pipeline.prompts import Prompt, read_prompts
from pipeline.scenes import SWITCHES
from pipeline.timeline import Grid, segments_of
from serve.request import Request
from serve.settings import ServeSettings
from serve.takes import NAME, Take, Takes
from serve.uploads import Uploads
from utils.errors import UserError, did_you_mean
from utils.settings import described
from wan.params import LatentFormat

GROUPS = ("model_kwargs.", "bank.")  # of settings that a request may change
FURTHER = ("context_noise", "denoising_step_list", "sampler")
EXAMPLES = 6  # prompts that are offered


@dataclass(frozen=True)
class Studio:
    """What this server makes takes of.

    Attributes:
        method: the one that is chosen when the page opens.
        words: settings of all takes, as `key=value`, from the command line.
        format: of the latents.
    """

    backbone: str
    method: str
    words: Sequence[str]
    serve: ServeSettings
    takes: Takes
    uploads: Uploads
    format: LatentFormat

    def config(self, request: Request, folder: Path, start: Path | None = None) -> RunConfig:
        """The settings of a take's run.

        Args:
            start: picture or clip that it begins with.

        Raises:
            UserError: a setting that is unknown, not to be changed here, or impossible.
        """
        allowed = changeable()
        words = []
        for name, value in request.settings.items():
            if name not in allowed:
                raise UserError(f"setting '{name}' cannot be changed here{did_you_mean(name, allowed)}")
            words.append(f"{name}={value}")
        path, *method = arguments(self.backbone, request.method)
        config = load_config(path, [*method, *self.words, *words])
        own: dict[str, Any] = {"prompt": request.prompt or None, "data_path": None, "output_folder": str(folder)}
        own |= {"num_samples": 1, "batch_size": 1, "keep_latents": True, "switch": request.switch, "fit": request.fit}
        if request.seed is not None:
            own["seed"] = request.seed
        if request.frames is not None:
            own["num_output_frames"] = request.frames
        if start is not None:
            own["start"] = str(start)
        if request.parent is not None:
            own |= self._fork(request)
        return replace(config, **own)

    def _fork(self, request: Request) -> dict[str, Any]:
        """Settings of a fork; what decides sizes and noise comes from its parent, as inference.sh has it."""
        parent = self.takes.get(request.parent)
        if not parent.is_finished or not parent.file("latents").exists():
            raise UserError(f"take {parent.number} is not finished; a fork needs a finished one")
        own: dict[str, Any] = {"parent": str(parent.folder / NAME), "at": request.at, "redo": request.redo}
        own["keep_after"] = request.keep_after
        if request.frames is None:
            own["num_output_frames"] = parent.frames
        if request.seed is None and parent.request.seed is not None:
            own["seed"] = parent.request.seed
        return own

    def check(self, request: Request) -> RunConfig:
        """Refuse, before it waits, what can be known to be wrong with a request."""
        config = self.config(request, self.takes.folder / "0000", self.start(request))
        seconds = self.format.pixel_frames(config.num_output_frames) / config.fps
        if seconds > self.serve.longest:
            raise UserError(f"{seconds:.1f} s of video are more than the {self.serve.longest:g} s that a take may have")
        grid = self.grid(config)
        if config.prompt is not None and request.parent is None:
            segments_of(Prompt(0, config.prompt), grid, config.switch)
        if config.at is not None:
            grid.start_at(config.at, "at")
        return config

    def start(self, request: Request) -> Path | None:
        """The upload that a request names.

        Raises:
            UserError: there is none of that name.
        """
        return self.uploads.path(request.start) if request.start else None

    def grid(self, config: RunConfig) -> Grid:
        """Where the blocks of a take begin."""
        block = config.num_frame_per_block
        return Grid(config.num_output_frames, block, block, config.fps / self.format.temporal)

    def command(self, take: Take) -> str:
        """The command that makes the same video, for a person to read."""
        request = take.request
        words = [self.backbone, request.method, *self.words]
        words += [f"{name}={value}" for name, value in request.settings.items()]
        if request.seed is not None:
            words.append(f"seed={request.seed}")
        words.append(f"num_output_frames={take.frames}")
        if request.parent is not None:
            words.append(f"from={self.takes.folder / f'{request.parent:04d}' / NAME}")
            words += [f"{name}={value}" for name in ("at", "redo") if (value := getattr(request, name))]
        if take.start is not None:
            words.append(f"start={take.start}")
        if request.switch != "text":
            words.append(f"switch={request.switch}")
        if take.scenes and request.parent is None:
            words.append(f"segments={_listed(take)}")
        if request.prompt:
            words.append(f"prompt={request.prompt}")
        return "bash inference.sh " + " ".join(quoted(word) for word in words)

    def choices(self) -> dict[str, Any]:
        """All that a page offers."""
        base = self.config(Request(prompt="-", method=self.method), self.takes.folder)
        return {
            "backbone": self.backbone,
            "method": self.method,
            "methods": {name: self._settings_of(name) for name in METHODS},
            "switches": {name: (rule.__doc__ or "").strip().partition("\n")[0] for name, rule in SWITCHES.items()},
            "prompts": self._prompts(),
            "seed": base.seed,
            "frames": base.num_output_frames,
            "block": base.num_frame_per_block,
            "temporal": self.format.temporal,
            "fps": base.fps,
            "width": base.width,
            "height": base.height,
            "limits": dataclasses.asdict(self.serve),
        }

    def _settings_of(self, method: str) -> list[dict[str, Any]]:
        """The settings of a method that change what it does, with their present values."""
        config = self.config(Request(prompt="-", method=method), self.takes.folder)
        names = {field.name for field in fields(config.policy())} - {"block"}
        if config.descriptor() is not None:
            names |= {"selection", "compression_method"}
        found = []
        for entry in described(RunConfig):
            group, _, name = entry.name.rpartition(".")
            if group == "model_kwargs" and name in names and entry.name in changeable():
                value = getattr(config.model_kwargs, name)
                field = type(config.model_kwargs).__dataclass_fields__[name]
                choices = list(field.metadata["choices"])
                found.append({"name": entry.name, "value": value, "meaning": entry.meaning, "choices": choices})
        return found

    def _prompts(self) -> list[str]:
        path = arguments(self.backbone, self.method)[0]
        try:
            prompts = read_prompts(load_config(path, list(self.words)).data_path, EXAMPLES)
        except (UserError, TypeError):  # of a backbone whose prompts were not downloaded
            return []
        return [prompt.text for prompt in prompts]


def _listed(take: Take) -> str:
    """The prompts of a take, of which some were switched to while it was made, as the setting `segments`."""
    entries = []
    ends = [segment.start for segment in take.segments[1:]] + [take.frames]
    for segment, end in zip(take.segments, ends, strict=True):
        entry = {"prompt": segment.prompt, "frames": end - segment.start}
        entries.append(entry | ({"how": segment.how} if segment.how else {}))
    return json.dumps(entries, ensure_ascii=False)


def changeable() -> set[str]:
    """Settings that a request may change: none that names a file or says where the work is done."""
    found = set()
    for name, field in _leaves(RunConfig):
        is_place = field.metadata.get("place") or field.metadata.get("reads") or field.metadata.get("writes")
        if not is_place and (name.startswith(GROUPS) or name in FURTHER):
            found.add(name)
    return found


def _leaves(schema: type, prefix: str = "") -> list[tuple[str, dataclasses.Field]]:
    found = []
    for field in fields(schema):
        nested = field.default_factory if dataclasses.is_dataclass(field.default_factory) else None
        if nested:
            found += _leaves(nested, f"{prefix}{field.name}.")
        elif "meaning" in field.metadata:
            found.append((prefix + field.name, field))
    return found


def quoted(word: str) -> str:
    """A word for a shell, its value in quotes where it needs them."""
    name, equals, value = word.partition("=")
    if not equals or all(character.isalnum() or character in "-_./,[]" for character in value):
        return word
    return f"{name}='" + value.replace("'", "'\\''") + "'"
