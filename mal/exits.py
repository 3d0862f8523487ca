"""How the `mal` process ends: one line on stderr and an exit code for every mistake, never a traceback.

Exit codes: 0 done, 1 failed, 2 wrong usage or unusable input, 3 done but some object that should have a
mask has none, 130 interrupted and resumable.
"""

import os
import signal
import sys
import threading
from typing import NoReturn


def _leave(message: str, code: int) -> NoReturn:
    """End at once: not by `sys.exit`, which waits for threads in the middle of a call."""
    print(f"mal: {message}", file=sys.stderr, flush=True)
    os._exit(code)


# Ctrl-C while the modules below load; `run` is there to catch it only afterwards.
_before = signal.getsignal(signal.SIGINT)
_MAIN_THREAD = threading.current_thread() is threading.main_thread()
if _MAIN_THREAD:
    signal.signal(signal.SIGINT, lambda number, frame: _leave("interrupted", 130))

import typer

from mal.errors import (
    EXTRA_OF,
    Interrupted,
    MalError,
    MissingPackageError,
    SessionHungError,
    missing_package,
)

if _MAIN_THREAD:
    signal.signal(signal.SIGINT, _before)

# typer carries its own copy of click and gives the base of its command-line errors no public name.
_CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]


def _fail(message: str, code: int) -> NoReturn:
    print(f"mal: {message}", file=sys.stderr)
    sys.exit(code)


def _fail_unexpectedly(error: Exception) -> NoReturn:
    words = " ".join(str(error).split())[:300]
    _fail(f"unexpected {type(error).__name__}: {words}; --debug shows where: please report it", 1)


def run(app: typer.Typer, *, debug: bool) -> NoReturn:
    """Run the command of sys.argv and end the process.

    Args:
        app: the commands.
        debug: let the traceback of an error show.
    """
    # SIGTERM is like Ctrl-C, whatever the command makes of that; both are heard in a script's background job, too.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    try:
        code = app(standalone_mode=False)
        if code == Interrupted.exit_code:  # what typer makes of Ctrl-C
            raise KeyboardInterrupt
        sys.exit(code if isinstance(code, int) else 0)
    except _CommandLineError as error:
        if debug:
            raise
        _fail(f"{error.format_message()} Try --help.", 2)  # pyright: ignore[reportAttributeAccessIssue]
    except SessionHungError as error:
        _leave(str(error), error.exit_code)
    except MalError as error:
        if debug:
            raise
        _fail(" ".join(str(error).split()), error.exit_code)
    except ModuleNotFoundError as error:
        if debug:
            raise
        if error.name is None or error.name.partition(".")[0] not in EXTRA_OF:
            _fail_unexpectedly(error)
        _fail(str(missing_package(error.name)), MissingPackageError.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        _leave("interrupted", 130)
    except BrokenPipeError:
        # The reader of our output went away (`mal … | head`); nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debug:
            raise
        _fail_unexpectedly(error)
