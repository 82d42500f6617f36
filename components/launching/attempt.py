"""A try of a stage that may run on several nodes: its step creates and watches a job, or does the work itself."""

from __future__ import annotations

import os
import sys
from functools import partial

from ngrpo.stages import attempt
from ngrpo_kfp.components.launching import train_job
from ngrpo_kfp.components.launching.train_job_manifest import TRAIN_JOB

if __name__ == "__main__":
    settings = os.environ.get(TRAIN_JOB)
    attempt.run(sys.stdin.read(), partial(train_job.run, settings_json=settings) if settings else None)
