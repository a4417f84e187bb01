"""Is every wait of the engine needed, and would its loss be found? `python -m tests.mutations [PART ...]`

Takes away, one at a time, every place at which a stream waits for another one, the host for a stream, or a moment is
marked to be waited for; then generates on the GPU that is not there, which must find a fault. Names of places that
contain a PART are looked at; without one, all. Exits with 1 where what is found is not what `FOUND_BY` says.
"""

import ast
import importlib
import inspect
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

from tests.gpu_cases import CASES, seen_case
from utils.errors import UserError, run

ROOT = Path(__file__).parent.parent
FILES = ("pipeline", "wan", "utils/streams.py", "utils/clock.py")
WAITS = ("join", "wait", "synchronize", "wait_event", "wait_stream", "record_stream")
MARKS = ("mark", "record_event")
ORDERED = ("after", "after_now")  # what is done within them comes after a moment

# Place -> the first of `CASES` in which its loss is found; in words, why nothing need find it.
FOUND_BY: dict[str, str] = {
    "pipeline/bank/bank.py: Bank.fetch: tier.mark(slot)": "host and disk",
    "pipeline/bank/bank.py: Bank._raise: tier.mark(slot)": "device and disk",
    "pipeline/bank/bank.py: Bank._insert: tier.wait(slot)": "host and disk",
    "pipeline/bank/tiers.py: RamTier.write: self.mark(slot)": "host and disk",
    "pipeline/bank/tiers.py: RamTier.mark: torch.cuda.current_stream().record_event()": "host and disk",
    "pipeline/bank/tiers.py: RamTier.wait: wait(mark)": "host and disk",
    "pipeline/bank/tiers.py: DiskTier.read: wait(self.copied)": "device and disk",
    "pipeline/bank/tiers.py: DiskTier.mark: torch.cuda.current_stream().record_event()": "device and disk",
    "pipeline/bank/tiers.py: DiskTier._to_host: torch.cuda.current_stream().record_event().synchronize()": (
        "device and disk"
    ),
    "pipeline/decode.py: DecodeThread.take: self.side.after_now()": "decoding",
    "pipeline/generation.py: Generation.fork: torch.cuda.synchronize(self.device)": "fork",
    "pipeline/generation.py: Generation.fork: torch.cuda.synchronize(self.device) (2)": "fork",
    "pipeline/kv_cache.py: KVCache.prefetch: self.side.after(self.before_commit)": "told",
    "pipeline/kv_cache.py: KVCache.prefetch: self.side.after_now()": "told",
    "pipeline/kv_cache.py: KVCache._prefetch_of: self.side.after_now()": "switch",
    "pipeline/kv_cache.py: KVCache.begin: self.side.join()": "host",
    "pipeline/kv_cache.py: KVCache.commit: self.store.join()": "host",
    "pipeline/kv_cache.py: KVCache.commit: self.side.join()": "switch",
    "pipeline/kv_cache.py: KVCache.commit: self.side.mark()": (
        "without this moment a fetch waits for all that was queued before it, which is later and as right"
    ),
    "pipeline/kv_cache.py: KVCache._fetch: self.store.join()": "pooled, cast",
    "pipeline/kv_cache.py: KVCache._retire: self.store.after_now()": "host",
    "pipeline/state.py: take_state: torch.cuda.synchronize(generation.device)": "state",
    "pipeline/weight_stream.py: WeightStream.enter: self.side.join()": "sink, low",
    "pipeline/weight_stream.py: WeightStream._fetch: self.side.after_now()": "sink, low",
    "utils/streams.py: SideStream.after: self.stream.wait_event(mark.event)": "host",
    "utils/streams.py: SideStream.after_now: self.after(self.mark())": "host",
    "utils/streams.py: SideStream.join: torch.cuda.current_stream(self.stream.device).wait_stream(self.stream)": "host",
    "utils/streams.py: OnHost.__init__: torch.cuda.current_stream(x.device).record_event()": "host",
    "utils/streams.py: OnHost.get: wait(self.event)": "host",
    "utils/streams.py: wait: event.synchronize()": "host and disk",
    "utils/clock.py: Clock.__call__: torch.cuda.current_stream(self.device).synchronize()": (
        "seconds are taken with it, and nothing is ordered"
    ),
}


@dataclass(frozen=True)
class Place:
    """A call in a function of the engine.

    Attributes:
        file: relative to the project.
        owner: of the function, a class, or empty.
        call: as it is written; `number` tells it from the same words before it in the function.
    """

    file: str
    owner: str
    function: str
    call: str
    number: int
    line: int
    column: int

    @property
    def name(self) -> str:
        where = f"{self.owner}.{self.function}" if self.owner else self.function
        again = f" ({self.number})" if self.number > 1 else ""
        return f"{self.file}: {where}: {self.call}{again}"


def places() -> list[Place]:
    """All places in the engine, in order."""
    found = []
    for part in FILES:
        path = ROOT / part
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            found += _places_in(file)
    return found


def _places_in(file: Path) -> list[Place]:
    found: list[Place] = []
    for owner, function in _functions(ast.parse(file.read_text())):
        counts: dict[str, int] = {}
        for call in sorted(_calls(function), key=lambda call: (call.lineno, call.col_offset)):
            text = ast.unparse(call)
            counts[text] = counts.get(text, 0) + 1
            where = (str(file.relative_to(ROOT)), owner, function.name, text, counts[text])
            found.append(Place(*where, call.lineno, call.col_offset))
    return found


def _functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions and methods, each with its class."""
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            yield "", node
        elif isinstance(node, ast.ClassDef):
            for inner in node.body:
                if isinstance(inner, ast.FunctionDef):
                    yield node.name, inner


def _calls(function: ast.FunctionDef) -> Iterator[ast.Call]:
    """The calls of a function that can be taken away."""
    for node in ast.walk(function):
        if isinstance(node, ast.Expr | ast.Assign) and _is_call(node.value, WAITS + MARKS):
            yield node.value
        elif _is_call(node, ORDERED):
            yield node


def _is_call(node: ast.AST, names: tuple[str, ...]) -> bool:
    if not isinstance(node, ast.Call):
        return False
    name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return name in names and not (name == "join" and node.args)  # of strings, or of what processes made


class _Without(ast.NodeTransformer):
    """Takes one call away: a statement is left out, and what is ordered becomes a stream that waits for nothing."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def _is_it(self, node: ast.AST) -> bool:
        return (node.lineno, node.col_offset) == (self.place.line, self.place.column)

    def _statement(self, node: ast.Expr | ast.Assign) -> ast.AST:
        if _is_call(node.value, WAITS + MARKS) and self._is_it(node.value):
            return ast.copy_location(ast.Pass(), node)
        return self.generic_visit(node)

    visit_Expr = visit_Assign = _statement

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if not (_is_call(node, ORDERED) and self._is_it(node)):
            return node
        side = ast.unparse(node.func.value)
        free = ast.parse(f"__import__('torch').cuda.stream({side}.stream)", mode="eval").body
        for part in ast.walk(free):
            ast.copy_location(part, node)
        return free


@contextmanager
def without(place: Place) -> Iterator[None]:
    """Within, the engine lacks what is at a place."""
    path = ROOT / place.file
    tree = ast.fix_missing_locations(_Without(place).visit(ast.parse(path.read_text())))
    code = compile(tree, path, "exec")
    for name in filter(None, (place.owner, place.function)):
        code = next(one for one in code.co_consts if isinstance(one, CodeType) and one.co_name == name)
    holder = importlib.import_module(place.file.removesuffix(".py").replace("/", "."))
    if place.owner:
        holder = getattr(holder, place.owner)
    function = inspect.unwrap(getattr(holder, place.function))
    whole = function.__code__
    function.__code__ = code
    try:
        yield
    finally:
        function.__code__ = whole


def fault_of(place: Place, case: str) -> str | None:
    """What is found in a case without a place; None if nothing is."""
    with without(place):
        try:
            faults = seen_case(case).faults
        except Exception as error:
            return f"{type(error).__name__}: {error}"
    return faults[0] if faults else None


def main() -> None:
    parts = sys.argv[1:]
    chosen = [place for place in places() if not parts or any(part in place.name for part in parts)]
    if not chosen:
        raise UserError(f"no place has any of {' '.join(parts)} in its name; give none to look at all")
    wrong = 0
    for place in chosen:
        started = time.perf_counter()
        expected = FOUND_BY.get(place.name, "nothing is known of it")
        found = ""
        for case in [expected] if expected in CASES else CASES:
            fault = fault_of(place, case)
            if fault:
                found = f"{case}: {fault}"
                break
        wrong += bool(found) != (expected in CASES)
        print(
            f"{place.name}\n    {found or f'not found; {expected}'} ({time.perf_counter() - started:.1f} s)", flush=True
        )
    print(f"{len(chosen)} places, {wrong} not as expected")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    run(main)
