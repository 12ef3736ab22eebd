"""Errors that end a command with a message. Run the command again to resume."""


class RunStopped(Exception):
    """What is wrong with the world, in a sentence; what is done stays done and the same command resumes."""


class WrongUse(RunStopped):
    """The command asks for what cannot be had: it must be changed before it can go on."""


class OtherSettings(WrongUse):
    """The table was labelled with other settings, such as another threshold."""


class LeaseHeld(RunStopped):
    """Another start writes the table; the sentence says which."""


class CapReached(RunStopped):
    """A limit that the user set on time or cost is reached; the same command resumes."""
