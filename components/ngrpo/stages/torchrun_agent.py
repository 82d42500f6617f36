"""torchrun without its pages about a process that failed or a signal: it ends with the code of that process, and its group says why.

A process that a signal has killed counts as in a shell: 128 and the number of the signal.
"""

from __future__ import annotations

import logging
import sys

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main

if __name__ == "__main__":
    logging.disable(logging.ERROR)  # which process it stops, and the code of the one that failed
    try:
        main()
    except ChildFailedError as failed:
        _, first = failed.get_first_failure()
        sys.exit(first.exitcode if first.exitcode > 0 else 128 - first.exitcode)
    except SignalException as stopped:
        sys.exit(128 + stopped.sigval)
