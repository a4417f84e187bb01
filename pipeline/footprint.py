"""How much device and host memory a run will take, part by part, and whether it is free: integers, no tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

GB = 10**9
ALLOCATOR_GAPS = 20  # percent beyond the tensors that PyTorch's allocator keeps of a GPU; 8 and 21 on an H200
CUDA_BYTES = 600 * 10**6  # about what CUDA's context and the libraries' workspaces take of a GPU


@dataclass(frozen=True)
class Preset:
    """Where things lie; no preset changes a number of the result.

    Attributes:
        offload: weights of transformer and text encoder stay in host memory and visit the GPU block by block.
        in_turn: a block is decoded before the next one is begun, so that only one of the two takes working memory.
        bank_on_device: frames outside the window stay on the GPU as far as it has room.
    """

    offload: bool = False
    in_turn: bool = False
    bank_on_device: bool = False


PRESETS = {"low": Preset(offload=True, in_turn=True), "balanced": Preset(), "fast": Preset(bank_on_device=True)}


@dataclass(frozen=True)
class Part:
    """Bytes of one thing in device and host memory.

    Attributes:
        remedy: what makes it smaller.
        estimated: a guess, which nothing is refused for.
    """

    name: str
    device: int = 0
    host: int = 0
    remedy: str = ""
    estimated: bool = False


@dataclass(frozen=True)
class Phase:
    """Parts that are needed at the same time."""

    name: str
    parts: tuple[Part, ...]

    def total(self, place: str, estimates: bool = True) -> int:
        """Bytes in `place`, device or host."""
        return sum(getattr(part, place) for part in self.parts if estimates or not part.estimated)


@dataclass(frozen=True)
class Free:
    """Bytes that can be had; without a GPU everything lies in host memory and `device` is None."""

    device: int | None
    host: int


@dataclass(frozen=True)
class MemoryPlan:
    """The phases of a run, of which each begins when the one before it has given its memory back."""

    phases: tuple[Phase, ...]
    free: Free

    def problem(self) -> str | None:
        """In one line: what does not fit, and the setting to change; None if all that is certain fits."""
        for phase in self.phases:
            for place, free in self._places():
                need = phase.total(place, estimates=False)
                if need > free:
                    most = max(phase.parts, key=lambda part: 0 if part.estimated else getattr(part, place))
                    return (
                        f"{phase.name} needs {need / GB:.1f} GB of {place} memory and {free / GB:.1f} GB are free; "
                        f"{getattr(most, place) / GB:.1f} GB of it are the {most.name}: {most.remedy}"
                    )
        return None

    def table(self) -> str:
        """The plan for a person to read, in GB."""
        places = [place for place, _ in self._places()]
        rows = [("GB", *places)]
        for phase in self.phases:
            for part in (part for part in phase.parts if part.device or part.host):
                name = f"  {part.name}{', estimated' if part.estimated else ''}"
                rows.append((name, *(_gigabytes(getattr(part, place)) for place in places)))
            rows.append((f"{phase.name}, in all", *(_gigabytes(phase.total(place)) for place in places)))
        rows.append(("free", *(_gigabytes(free) for _, free in self._places())))
        width = max(len(row[0]) for row in rows)
        lines = [row[0].ljust(width) + "".join(cell.rjust(9) for cell in row[1:]) for row in rows]
        tight = [
            f"{phase.name} may not fit into {place} memory"
            for phase in self.phases
            for place, free in self._places()
            if phase.total(place) > free
        ]
        return "\n".join([*lines, *(f"note: {line}; see docs/weights.md" for line in tight)])

    def summary(self) -> str:
        """The table on lines of its own, or a few words where no phase takes a gigabyte."""
        needs = [(place, max(phase.total(place) for phase in self.phases), free) for place, free in self._places()]
        if max(need for _, need, _ in needs) > GB:
            return f"\n{self.table()}"
        return ", ".join(f"{_gigabytes(need)} of {_gigabytes(free)} GB {place}" for place, need, free in needs)

    def spare(self) -> int:
        """Bytes of device memory that no phase will use, less a tenth for the allocator; 0 without a GPU."""
        if self.free.device is None:
            return 0
        return max(self.free.device * 9 // 10 - max(phase.total("device") for phase in self.phases), 0)

    def _places(self) -> Sequence[tuple[str, int]]:
        host = [("host", self.free.host)]
        return host if self.free.device is None else [("device", self.free.device), *host]


def placed(on_device: bool, name: str, size: int, remedy: str = "", estimated: bool = False) -> Part:
    """A part that lies in one place."""
    return Part(name, size if on_device else 0, 0 if on_device else size, remedy, estimated)


def transformer_work(tokens: int, dim: int, ffn_dim: int, frame_bytes: int, itemsize: int) -> int:
    """About what a forward holds beside weights and context: a layer's activations, a frame's rotation.

    Args:
        tokens: of a block, of all samples.
        frame_bytes: keys and values of one latent frame.
    """
    return tokens * (ffn_dim + 8 * dim) * itemsize + 2 * frame_bytes


def _gigabytes(size: int) -> str:
    return "-" if not size else f"{size / GB:.2f}" if size < GB else f"{size / GB:.1f}"
