"""Handling of Ctrl-C: the first ends the command cleanly, the second does nothing, the third ends it immediately.

If a library has caught and ignored the first, the second ends the command cleanly.
"""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import Any

STOPPING = "stopping, this may take some seconds"
STILL_STOPPING = "still stopping; a third Ctrl-C ends the command at once and may leave temporary files"


class Interrupts:
    """The handler of SIGINT while a command runs, unless the command was started with SIGINT ignored.

    It writes to its own descriptor, because standard error is silenced while Ray starts and trains.
    """

    def __init__(self, exit_code: int) -> None:
        """Install the handler.

        Args:
            exit_code: Exit code of the process after a third Ctrl-C.
        """
        self.count = 0
        self._is_over = False
        self._exit_code = exit_code
        self._before: Any = signal.getsignal(signal.SIGINT)
        self._descriptor = -1
        if self._before is signal.default_int_handler:
            with suppress(OSError):  # standard error may be closed
                self._descriptor = os.dup(2)
            signal.signal(signal.SIGINT, self._handle)

    def restore(self) -> None:
        """Restore the handler of SIGINT, unless the command was interrupted and the process is about to end."""
        self._is_over = True
        if self.count or self._before is not signal.default_int_handler:
            return
        signal.signal(signal.SIGINT, self._before)
        with suppress(OSError):
            os.close(self._descriptor)

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        self.count += 1
        if self.count > 2:
            os._exit(self._exit_code)
        is_ending = self._is_over or (self.count > 1 and _is_handled(sys.exception()))
        self._say(STILL_STOPPING if is_ending else STOPPING)
        if not is_ending:
            raise KeyboardInterrupt

    def _say(self, sentence: str) -> None:
        # after the "^C" and the progress on a terminal
        before = "\n" if os.isatty(self._descriptor) else ""
        # the reader may have ended, like `tee` after the same Ctrl-C: an error instead of the KeyboardInterrupt would
        # look like an error of the code that runs now
        with suppress(OSError):
            os.write(self._descriptor, f"{before}{sentence}\n".encode())


def _is_handled(error: BaseException | None) -> bool:
    """Return whether a KeyboardInterrupt is being handled: clean-up code is running, and may handle its own errors."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None
