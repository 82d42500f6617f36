"""N-GRPO for programs of your own: TRL's trainer, an index of neighbors, and a vLLM engine that mixes. See `docs/library.md`.

The names are in the package itself: `from ngrpo import NGRPOTrainer`. No stage of the pipeline runs what is here.
"""
