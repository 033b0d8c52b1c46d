"""Steps the clock of this process's Python: a substitute for libfaketime."""

import os
import time
from pathlib import Path

_offset = Path(os.environ["FAKETIME_TIMESTAMP_FILE"])
_time = time.time


def _stepped() -> float:
    return _time() + float(_offset.read_text())


time.time = _stepped
time.time_ns = lambda: int(_stepped() * 1e9)
