"""Draw what a block of each method attends to, from its real plans: `python -m docs.method_rows` makes methods.svg."""

from html import escape
from pathlib import Path

from pipeline.backbones import METHODS, PROJECT, config_path
from pipeline.config import load_config
from pipeline.context import COMPRESSED, ENCODED, LOCAL, MERGED, OWN, OWN_INDEX, RETRIEVED, SINK, ContextPolicy, Piece
from utils.errors import run
from utils.files import atomic

PICTURE = Path(__file__).parent / "methods.svg"
START = 60  # the drawn block's first latent frame, a multiple of the block
COLOURS = {
    SINK: "#f2b134",
    RETRIEVED: "#6a8fd8",
    COMPRESSED: "#a9c3ee",
    MERGED: "#b07cc6",
    ENCODED: "#59b3a8",
    LOCAL: "#9ccb86",
    OWN: "#e2e2e2",
}
BOX = 26  # pixels, of a whole frame
HEIGHT = 24
ROW = 74
LEFT = 176
MARGIN = 14


def policy_of(method: str) -> ContextPolicy:
    """A method's context, as `bash inference.sh tinyworld METHOD` has it."""
    return load_config(PROJECT / config_path("tinyworld", method), METHODS[method].settings).policy()


def pieces_of(policy: ContextPolicy) -> list[Piece]:
    """The drawn block's context; frames spread over the past stand for those that would be retrieved."""
    candidates = list(policy.candidates(START))
    chosen = []
    for number in range(policy.memory_size):
        chosen.append(candidates[(2 * number + 1) * len(candidates) // (2 * policy.memory_size)])
    return list(policy.plan(START, [chosen] if chosen else []).pieces())


def draw() -> str:
    """The picture as SVG: of each frame its number in the box, its temporal index below."""
    rows = {name: pieces_of(policy_of(name)) for name in METHODS}
    width = LEFT + MARGIN + max(sum(_width(piece) for piece in pieces) for pieces in rows.values())
    height = ROW * len(rows) + 3 * MARGIN + HEIGHT
    found = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height}" font-family="sans-serif">',
        f'<rect width="{width:.0f}" height="{height}" fill="#ffffff"/>',
    ]
    found += _legend()
    for number, (name, pieces) in enumerate(rows.items()):
        found += _row(name, pieces, 2 * MARGIN + HEIGHT + ROW * number)
    return "\n".join([*found, "</svg>", ""])


def _legend() -> list[str]:
    found = []
    left = LEFT
    for role, colour in COLOURS.items():
        found.append(f'<rect x="{left}" y="{MARGIN}" width="14" height="14" fill="{colour}" stroke="#555555"/>')
        found.append(_text(left + 20, MARGIN + 12, "new" if role == OWN else role, 12))
        left += 92
    return found


def _row(name: str, pieces: list[Piece], top: int) -> list[str]:
    found = [_text(MARGIN, top + 17, name, 13)]
    left = LEFT
    for piece in pieces:
        width = _width(piece)
        found.append(
            f'<rect x="{left:.1f}" y="{top}" width="{width:.1f}" height="{HEIGHT}" fill="{COLOURS[piece.role]}" '
            'stroke="#555555"/>'
        )
        if piece.pool == 1:
            label = "*" if piece.role == MERGED else str(piece.frame)
            index = "own" if piece.position == OWN_INDEX and piece.role == MERGED else str(piece.position)
            found.append(_text(left + width / 2, top + 16, label, 11, "middle"))
            found.append(_text(left + width / 2, top + HEIGHT + 14, index, 10, "middle", "#777777"))
        left += width
    return found


def _width(piece: Piece) -> float:
    return BOX / piece.pool**2


def _text(x: float, y: float, text: str, size: int, anchor: str = "start", colour: str = "#222222") -> str:
    return f'<text x="{x:.1f}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def main() -> None:
    with atomic(PICTURE) as temporary:
        temporary.write_text(draw(), encoding="utf-8")
    print(f"wrote {PICTURE}")


if __name__ == "__main__":
    run(main)
