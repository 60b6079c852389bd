"""Ctrl-C, SIGTERM and a terminal's end (SIGHUP) end a run after the step they fall into, saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Dict, Optional

_HANGUP: int = getattr(signal, "SIGHUP", signal.SIGTERM)  # which Windows does not have


class Interrupt:
    """`interrupt.signal` is the signal that came, or None. A second ends the program at once."""

    def __init__(self) -> None:
        self.signal: Optional[int] = None
        self._before: Dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            for number in {signal.SIGINT, signal.SIGTERM, _HANGUP}:
                if number != _HANGUP or signal.getsignal(number) != signal.SIG_IGN:  # of nohup
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @property
    def exit_code(self) -> int:
        """What a shell expects after a signal: 130 for Ctrl-C, 143 for SIGTERM."""
        return 0 if self.signal is None else 128 + self.signal

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        self.signal = number
        self.__exit__()
        if number == _HANGUP:  # comes twice, from the shell and from the system
            self._before = {}
            signal.signal(number, signal.SIG_IGN)
