"""Groups of attention heads that see a part of the context: read from a file of head lists. Integers only.

The file is JSON. A head that no group names sees all; a role that `sees` does not name is seen whole:

    {"groups": {"near": {"sees": {"sink": 1, "local": 3, "retrieved": 0}, "heads": [[0, 2], [], [1]]}}}

Here heads 0 and 2 of the first layer and head 1 of the third see the first sink frame, the latest 3 local ones and
nothing that was retrieved. The block's own frames are seen by every head.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.context import COMPRESSED, ENCODED, LOCAL, MERGED, RETRIEVED, SINK, Piece
from utils.errors import UserError
from utils.files import require_file

ROLES = (SINK, RETRIEVED, COMPRESSED, ENCODED, MERGED, LOCAL)


@dataclass(frozen=True)
class HeadGroup:
    """Heads that see the same.

    Attributes:
        sees: role -> how many of its pieces, at most: of the sink the first ones, of others the last.
        heads: of each layer, their numbers.
    """

    sees: dict[str, int]
    heads: tuple[tuple[int, ...], ...]

    def hidden(self, pieces: Sequence[Piece]) -> list[int]:
        """Places in a context of the pieces that these heads do not see."""
        found = []
        for role, most in self.sees.items():
            places = [place for place, piece in enumerate(pieces) if piece.role == role]
            found += places[most:] if role == SINK else places[: max(len(places) - most, 0)]
        return sorted(found)


def read_head_groups(path: str | Path) -> dict[str, HeadGroup]:
    """The groups of a file, by name.

    Raises:
        UserError: the file is not of the form above.
    """
    path = require_file(path, "head_groups file", "name a JSON file of head lists, see pipeline/heads.py")
    try:
        groups = json.loads(path.read_text(encoding="utf-8"))["groups"]
        found = {name: _group(entry) for name, entry in groups.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"head_groups {path} holds no groups of heads ({error}); see pipeline/heads.py") from error
    for name, group in found.items():
        if unknown := set(group.sees) - set(ROLES):
            raise UserError(
                f"head_groups {path}: group '{name}' sees {', '.join(unknown)}; roles are {', '.join(ROLES)}"
            )
    return found


def require_head_groups(path: str | Path, layers: int, heads: int, model: str) -> None:
    """Refuse lists that are of another model, or that name a head twice.

    Args:
        model: whose layers and heads these are, for the message.
    """
    taken: dict[tuple[int, int], str] = {}
    for name, group in read_head_groups(path).items():
        largest = max((head for row in group.heads for head in row), default=0)
        if len(group.heads) != layers or largest >= heads:
            raise UserError(
                f"head_groups {path}: group '{name}' lists {len(group.heads)} layers and heads up to {largest}, and "
                f"{model} has {layers} layers of {heads} heads; make the lists for this model"
            )
        for layer, row in enumerate(group.heads):
            for head in row:
                if (layer, head) in taken:
                    raise UserError(
                        f"head_groups {path}: head {head} of layer {layer} is in '{taken[layer, head]}' and in "
                        f"'{name}'; leave it in one"
                    )
                taken[layer, head] = name


def _group(entry: dict) -> HeadGroup:
    sees = {str(role): _count(most) for role, most in entry["sees"].items()}
    heads = []
    for row in entry["heads"]:
        heads.append(tuple(_count(head) for head in row))
    return HeadGroup(sees, tuple(heads))


def _count(number: object) -> int:
    if isinstance(number, bool) or not isinstance(number, int) or number < 0:
        raise ValueError(f"{number!r} is no whole number from 0 on")
    return number
