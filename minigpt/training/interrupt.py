"""Ctrl-C and SIGTERM end a run after the step they fall into, so that it can be saved and resumed
exactly.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Dict, Optional, Type

from typing_extensions import Literal


class Interrupt:
    """`with Interrupt() as interrupt:` — `interrupt.signal` is the signal that came, or None.

    A second one ends the program at once, as it would have without us.
    """

    def __init__(self) -> None:
        self.signal: Optional[int] = None
        self._before: Dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: Optional[Type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> Literal[False]:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        return False

    @property
    def exit_code(self) -> int:
        """What a shell expects after a signal: 130 for Ctrl-C, 143 for SIGTERM."""
        return 0 if self.signal is None else 128 + self.signal

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        self.signal = number
        for each, handler in self._before.items():
            signal.signal(each, handler)
