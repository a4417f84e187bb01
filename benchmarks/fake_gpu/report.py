"""A table of what a block of Wan2.1-T2V-1.3B at 480x832 does on a GPU, counted on one that is not there."""

from benchmarks.fake_gpu.engine import LATENTMEM, Case, watch
from benchmarks.fake_gpu.tally import Card
from utils.table import markdown
from wan.params import WanParams

LOW = {"memory": "low"}
DRAFT = LATENTMEM | {"selection": "similarity", "query": "draft", "retrieve_after": "local", "recent_exclude": 0}
# Row -> settings, layers of the two models that are counted, and blocks until the steady state is over.
ROWS = {
    "native": ({}, (1, 2), 7),
    "latentmem": ({"model_kwargs": LATENTMEM}, (1, 2), 10),
    "latentmem_draft": ({"model_kwargs": DRAFT}, (1, 2), 10),
    "native, memory=low": (LOW, (4, 6), 7),
}
HEADER = (
    "a block", "kernels", "GB of kernels", "TFLOP", "D2H MB, compute", "beside", "H2D MB", "host waits",
    "estimated s",
)  # fmt: skip


def counted_table() -> str:
    """Markdown. Layers are alike, so that a few of them tell what all of them do."""
    card, rows = Card(), []
    for name, (settings, layers, blocks) in ROWS.items():
        few, more = (_figures(settings, count, blocks) for count in layers)
        figures = [of_all(layers, *pair) for pair in zip(few, more, strict=True)]
        kernels, moved, flop, on_main, beside, to_device, waits, seconds = figures
        rows.append(
            (
                name,
                f"{kernels:,.0f}",
                f"{moved / 1e9:.0f}",
                f"{flop / 1e12:.1f}",
                f"{on_main / 1e6:.1f}",
                f"{beside / 1e6:.1f}",
                f"{to_device / 1e6:,.1f}",
                f"{waits:.1f}",
                f"{seconds:.3f}",
            )
        )
    return f"{markdown([HEADER, *rows])}\n\n{_peaks()}\n\n{_rates(card)}"


def of_all(layers: tuple[int, int], few: float, more: float) -> float:
    """A figure of the whole transformer from those of two with fewer layers."""
    a_layer = (more - few) / (layers[1] - layers[0])
    return few + (WanParams().num_layers - layers[0]) * a_layer


def _peaks() -> str:
    """The most memory of `memory=low` with retrieval, all of it in host memory, by decoder."""
    layers = (4, 6)
    rows = [("latentmem, memory=low, blocks decoded in turn", "GB at most, CUDA's context and workspaces not counted")]
    for vae in ("full", "tiny"):
        settings = LOW | {"model_kwargs": LATENTMEM, "denoising_step_list": [1000]}
        few, more = (watch(Case(settings, layers=count, blocks=2, counted=1, vae=vae)).peak for count in layers)
        rows.append((f"vae={vae}", f"{of_all(layers, few, more) / 1e9:.1f}"))
    return markdown(rows)


def _rates(card: Card) -> str:
    return (
        f"Counted, not measured. Seconds are an estimate at {card.name}'s assumed rates: GEMM {card.gemm / 1e12:.0f} "
        f"and attention {card.attention / 1e12:.0f} TFLOP/s, memory {card.memory / 1e12:.1f} TB/s, bus "
        f"{card.bus / 1e9:.0f} GB/s."
    )


def _figures(settings: dict, layers: int, blocks: int) -> list[float]:
    """Of a block of so many layers: see the table's columns."""
    seen = watch(Case(settings, layers=layers, blocks=blocks, counted=3))
    tally = seen.tally
    on_main = tally.copied("D2H", "main")
    figures = [
        tally.kernels["main"],
        sum(tally.kernel_bytes.values()),
        sum(tally.flop.values()),
        on_main,
        tally.copied("D2H") - on_main,
        tally.copied("H2D"),
        sum(tally.waits.values()),
    ]
    figures.append(max(tally.seconds["main"], tally.copied("H2D") / Card().bus))
    return [figure / seen.blocks for figure in figures]
