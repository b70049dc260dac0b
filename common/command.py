"""The frame of every command: errors become one line, signals become exit statuses.

Exit status: 0 done; 2 the user can mend it (one line a problem, no traceback); 1 our fault (traceback) or a loss
that diverged (one line); 130 after Ctrl-C; 141 where nobody reads the output any more; 143 after SIGTERM.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from common.errors import Notice, TrainingDiverged, UserError, UserErrors


class Terminated(BaseException):
    """SIGTERM arrived; the text, if there is one, says how to go on.

    Not an Exception, so that no handler swallows it and every ``finally`` runs.
    """


def run(main: Callable[[], None]) -> NoReturn:
    """Run a command's ``main`` and leave the process with the status that says how it went."""
    signal.signal(signal.SIGTERM, _terminate)
    warnings.showwarning = partial(_show_warning, warnings.showwarning)
    try:
        main()
        sys.stdout.flush()
    except UserErrors as error:
        for problem in error.problems:
            print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except TrainingDiverged as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:  # as in `... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains when it flushes
        sys.exit(141)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            print(f"error: {error.filename or 'output'}: {error.strerror}; free some room or choose another --output, "
                  "then run the same command again (a training that has begun: with --resume)", file=sys.stderr)
            sys.exit(2)
        raise
    except (MemoryError, RuntimeError) as error:
        kinds = ("MemoryError", "OutOfMemoryError")  # the second is torch's, which is not imported here
        if type(error).__name__ not in kinds and "can't allocate memory" not in str(error):
            raise
        print(f"error: out of memory ({' '.join(str(error).split())[:120]}); segmenting: a bounded memory.policy, a "
              "smaller inference.long_edge, fewer inference.streams, inference.amp; training: more train.accumulate, a "
              "smaller train.crop, train.amp", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except Terminated as stop:
        print(str(stop) or "terminated", file=sys.stderr)
        sys.exit(143)
    sys.exit(0)


def child(words: list[str], folder: Path | None = None) -> int:
    """Run another program, in ``folder``, to its end and return its status.

    What stops this one stops it first, and waits: a training leaves a checkpoint.
    """
    with subprocess.Popen(words, cwd=folder) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            process.wait()
            raise


def _show_warning(otherwise: Callable[..., None], message: Warning | str, category: type[Warning], *place: Any) -> None:
    if issubclass(category, Notice):
        print(f"note: {message}", file=sys.stderr)
    else:
        otherwise(message, category, *place)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise Terminated
