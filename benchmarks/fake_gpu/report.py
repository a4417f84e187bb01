"""A table of what a block of Wan2.1-T2V-1.3B at 480x832 does on a GPU, counted on one that is not there."""

from benchmarks.fake_gpu.engine import LATENTMEM, Case, watch
from benchmarks.fake_gpu.tally import Card
from wan.params import WanParams

METHODS = {"native": {}, "latentmem": {"model_kwargs": LATENTMEM}}


def counted_table() -> str:
    """Markdown. Layers are alike, so that one and two of them tell what all of them do."""
    card, layers = Card(), WanParams().num_layers
    rows = [
        "| a block | kernels | GB of kernels | TFLOP | D2H MB, compute | beside | H2D MB | waits | estimated s |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, settings in METHODS.items():
        one, two = (_figures(settings, count) for count in (1, 2))
        whole = []
        for first, second in zip(one, two, strict=True):
            whole.append(first + (layers - 1) * (second - first))
        kernels, moved, flop, on_main, beside, to_device, waits, seconds = whole
        rows.append(
            f"| {name} | {kernels:,.0f} | {moved / 1e9:.0f} | {flop / 1e12:.1f} | {on_main / 1e6:.1f} | "
            f"{beside / 1e6:.1f} | {to_device / 1e6:.1f} | {waits:.1f} | {seconds:.3f} |"
        )
    rows.append(
        f"\nCounted, not measured. Seconds are an estimate at {card.name}'s assumed rates: GEMM {card.gemm / 1e12:.0f} "
        f"and attention {card.attention / 1e12:.0f} TFLOP/s, memory {card.memory / 1e12:.1f} TB/s."
    )
    return "\n".join(rows)


def _figures(settings: dict, layers: int) -> list[float]:
    """Of a block of so many layers: see the table's columns."""
    seen = watch(Case(settings, layers=layers, blocks=10, counted=3))
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
        tally.seconds["main"],
    ]
    return [figure / seen.blocks for figure in figures]
