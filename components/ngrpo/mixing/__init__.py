"""Semantic Neighbor Mixing as pure tensor code: the one definition that every rollout engine and training share.

Nothing here imports another part of `ngrpo`.
"""
