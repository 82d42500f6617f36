"""The exception for a command that a signal told to stop."""

import signal


class Interrupted(KeyboardInterrupt):
    """The command was told to stop."""

    def __init__(self, number: int):
        super().__init__(signal.Signals(number).name)
        self.number = number
