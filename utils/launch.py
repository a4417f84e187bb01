"""torchrun without its tracebacks: `python -m utils.launch [torchrun options] SCRIPT|-m MODULE [arguments]`.

Starts the processes as torchrun does. A process that fails has said why in one line, which is
printed once where several fail alike; its exit status becomes this one's, and torchrun's own report
is left out.
"""

import logging
import os
import sys
import tempfile

from utils.errors import SAID


def main() -> None:
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import main as torchrun

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    try:
        with tempfile.TemporaryDirectory() as os.environ[SAID]:
            torchrun(sys.argv[1:])
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        sys.exit(failure.exitcode if 0 < failure.exitcode < 126 else 1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
