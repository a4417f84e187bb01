"""Optional work, on which nothing depends: if it fails, the run goes on after one warning."""

import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from utils.errors import say_once

_warned: set[str] = set()


@contextmanager
def best_effort(what: str, instead: str) -> Iterator[None]:
    """Do work whose failure is no failure of the run; the first time that `what` fails, a warning says so.

    `DEBUG=1` shows the traceback as well.

    Args:
        what: the work, in the words of the warning; also what "the first time" is counted by.
        instead: what the run does without it.
    """
    try:
        yield
    except Exception as error:
        if os.environ.get("DEBUG") == "1":
            traceback.print_exc(file=sys.stderr)
        reason = " ".join(str(error).split()) or type(error).__name__
        warn_once(what, f" failed, {instead}: {reason[:300]}")


def warn_once(what: str, more: str = "") -> None:
    """Print a warning to stderr, unless this process, or one started with it, has warned of `what` before.

    Args:
        more: the rest of the line, which may differ from time to time.
    """
    if what not in _warned:
        _warned.add(what)
        say_once(f"warning: {what}{more}")
