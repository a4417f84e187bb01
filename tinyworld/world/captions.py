"""The caption grammar: what a clip's text says, and the way back from text to meaning."""

import re
from dataclasses import dataclass

from utils.errors import UserError

GROUNDS = ("meadow", "desert", "snowfield")
TIMES = ("noon", "dusk", "night")
SUBJECTS = ("fox", "wolf")
KINDS = ("house", "tree", "tower", "balloon")
COLOURS = ("red", "yellow", "blue", "purple")
DIRECTIONS = ("right", "left")


@dataclass(frozen=True)
class Meaning:
    """What a caption states; `objects` are (colour, kind) pairs in their order of appearance."""

    ground: str
    time: str
    subject: str
    direction: str
    objects: tuple[tuple[str, str], ...]


def caption(meaning: Meaning) -> str:
    """The one sentence for a meaning: `parse(caption(m)) == m`."""
    objects = ", ".join(f"a {colour} {kind}" for colour, kind in meaning.objects)
    way = f"the camera following a {meaning.subject} {meaning.direction}"
    return f"A {meaning.ground} at {meaning.time}, {way} past {objects}."


def parse(text: str) -> Meaning:
    """Read a caption of this grammar.

    Raises:
        UserError: the text is not a caption of the world.
    """
    found = re.fullmatch(
        rf"A ({'|'.join(GROUNDS)}) at ({'|'.join(TIMES)}),"
        rf" the camera following a ({'|'.join(SUBJECTS)}) ({'|'.join(DIRECTIONS)}) past ((?:a \w+ \w+(?:, )?)+)\.",
        text.strip(),
    )
    objects = tuple(re.findall(r"a (\w+) (\w+)", found[5])) if found else ()
    if not found or any(colour not in COLOURS or kind not in KINDS for colour, kind in objects):
        example = Meaning(GROUNDS[0], TIMES[0], SUBJECTS[0], DIRECTIONS[0], (("red", "house"), ("blue", "tree")))
        raise UserError(f"caption '{text}' is not one of this world; an example: '{caption(example)}'")
    return Meaning(*found.groups()[:4], objects)


def words() -> list[str]:
    """The tokenizer's vocabulary: every word and sign a caption may hold, in lower case."""
    plain = ["a", "at", "the", "camera", "following", "past", ",", "."]
    return [*plain, *SUBJECTS, *GROUNDS, *TIMES, *KINDS, *COLOURS, *DIRECTIONS]
