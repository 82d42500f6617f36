"""Grading as benchmarks and rewards use it; the graders themselves are in `ngrpo.grading`."""

from ngrpo.grading.grader import Grade, Grader, extract_answer, grade_letter

__all__ = ["Grade", "Grader", "extract_answer", "grade_letter"]
