"""N-GRPO: Semantic Neighbor Mixing, its neighbor index, training, evaluation and promotion. Knows nothing of Kubeflow."""
