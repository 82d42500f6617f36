"""Grading as benchmarks and rewards use it; the graders themselves are in `ngrpo.grading`."""

from ngrpo.grading.extraction import extract_answer
from ngrpo.grading.grader import Grade, Grader

__all__ = ["Grade", "Grader", "extract_answer"]
