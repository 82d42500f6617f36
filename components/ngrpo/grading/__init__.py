"""Whether an answer equals the gold answer: spelling, values, and the sandbox in which answers are compared."""
