"""The one exception a user is meant to read, and how an entry point shows it."""

import os
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path

SAID = "LONGLIVE_RAG_SAID"  # names the folder in which a launcher's processes note what one of them has said


class UserError(Exception):
    """Bad input: one line that names the value, the file and the remedy."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`"; did you mean 'seed'?"` for a near miss among `choices`, or an empty string."""
    near = get_close_matches(word, list(choices), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def run(main: Callable[[], None]) -> None:
    """Run an entry point: a `UserError` becomes one line on stderr and exit status 2.

    Of processes that `utils.launch` started together, one says what several have to say. `DEBUG=1`
    shows the traceback as well.
    """
    try:
        main()
    except UserError as error:
        if os.environ.get("DEBUG") == "1":
            raise
        say_once(f"error: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        say_once("interrupted")
        sys.exit(130)


def say_once(line: str) -> None:
    """Print a line to stderr, unless another of the processes started together printed the same one."""
    said = os.environ.get(SAID)
    if said is not None:
        try:
            Path(said, sha256(line.encode()).hexdigest()).touch(exist_ok=False)
        except FileExistsError:
            return
        except OSError:  # the launcher is gone or the disk is full: rather twice than not at all
            pass
    print(line, file=sys.stderr, flush=True)
