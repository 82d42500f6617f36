"""The grading worker on a machine whose kernel filters no system calls."""

from ngrpo.grading import sandbox
from ngrpo.grading import worker as grading_worker

if __name__ == "__main__":
    sandbox.filter_system_calls = lambda: "no filter of system calls on a machine of the tests"
    grading_worker.main()
