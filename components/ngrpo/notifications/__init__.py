"""Says what happened to those who are not at the terminal: an event, its message in the receiver's format, and its delivery."""
