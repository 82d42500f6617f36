"""Compare answers with gold answers: spelling, values, and the sandbox in which they are compared."""
