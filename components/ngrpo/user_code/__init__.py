"""Functions of the user, from the settings to something that can be called. They are trusted: they run in the stage's own process."""

from ngrpo.user_code.loading import load, write_code

__all__ = ["load", "write_code"]
