"""The picture of training curves."""

from pathlib import Path

from utils.figure import new_figure, save


def draw_curve(history: list[dict[str, float]], path: Path) -> None:
    """Training and held-out losses over epochs, one panel a loss."""
    names = [key.removeprefix("train_") for key in history[0] if key.startswith("train_")]
    epochs = [row["epoch"] + 1 for row in history]
    figure = new_figure(3.2 * len(names), 3)
    panels = figure.subplots(1, len(names))
    for axes, name in zip(panels, names, strict=True):
        for part, label in (("train", "training"), ("val", "held out")):
            axes.plot(epochs, [row[f"{part}_{name}"] for row in history], label=label)
        axes.set(title=name, xlabel="epoch")
    panels[-1].legend()
    save(figure, path, dpi=120)
