"""Mixing inside stock vLLM, through its extension points: a worker class and a scheduler class.

`engine` is what training and evaluation use. `worker`, `runner_v1`, `runner_v2` and `scheduler` are loaded by vLLM, in its processes;
they keep a `MixingSlots` up to date and lay mixtures over the input embeddings of vLLM's model runners.
"""
