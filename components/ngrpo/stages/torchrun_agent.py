"""torchrun without its long reports about failed processes and signals: it exits with the code of the failed process.

A process that a signal has killed counts as in a shell: 128 plus the number of the signal. The caller reports the reason.
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
