"""The one exception a user is meant to read, and how an entry point shows it."""

import os
import sys
from collections.abc import Callable, Iterable
from difflib import get_close_matches


class UserError(Exception):
    """Bad input: one line that names the value, the file and the remedy."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """`"; did you mean 'seed'?"` for a near miss among `choices`, or an empty string."""
    near = get_close_matches(word, list(choices), n=1)
    return f"; did you mean '{near[0]}'?" if near else ""


def run(main: Callable[[], None]) -> None:
    """Run an entry point: a `UserError` becomes one line on stderr and exit status 2.

    `DEBUG=1` shows the traceback as well.
    """
    try:
        main()
    except UserError as error:
        if os.environ.get("DEBUG") == "1":
            raise
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr, flush=True)
        sys.exit(130)
