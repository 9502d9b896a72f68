# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Processes of their own without the start of an interpreter: forks, with everything imported."""

import os
import runpy
import socket
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.logging import MMLogger


def free_port() -> str:
    """A port of this machine that nobody listens on."""
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        return str(listener.getsockname()[1])


def forked(function: Callable[[], object], log: Path | None = None, **environment: str) -> int:
    """Start a function in a process of its own; its id, for :func:`exit_code`.

    Args:
        function: What to call. Errors are printed with their traceback.
        log: A file that takes what it prints.
        environment: Variables of its environment.
    """
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code: int | str | None = 1
    try:
        os.environ.update(environment)
        torch.set_num_threads(1)
        if log is not None:
            # Buffered by lines, as what several processes print would else be mixed.
            sys.stdout = sys.stderr = log.open('w', buffering=1)
            MMLogger._instance_dict.clear()  # they print to where this process did
        function()
        code = 0
    except SystemExit as error:
        code = error.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)


def exit_code(pid: int) -> int:
    """Wait for a process; minus the signal's number where a signal ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_script(path: Path, *arguments: object, log: Path, code: int = 0, **environment: str) -> str:
    """What a script prints that is run as ``python PATH ARGUMENTS``, once it ended as expected.

    Args:
        path: The script.
        arguments: Arguments of its command line.
        log: A file that takes what it prints.
        code: The exit code that is expected.
        environment: Variables of its environment.
    """

    def start():
        sys.argv = [str(path), *map(str, arguments)]
        runpy.run_path(str(path), run_name='__main__')

    found = exit_code(forked(start, log, **environment))
    assert found == code, log.read_text()[-6000:]
    return log.read_text()


def run_ranks(function: Callable[[], object], folder: Path, world: int = 2) -> list[int]:
    """Call a function in processes that ``torch.distributed`` joins; their exit codes.

    Args:
        function: What to call.
        folder: Takes what each of them prints, as ``rank0.log`` and so on.
        world: How many.
    """
    port = free_port()
    processes = [
        forked(
            function,
            folder / f'rank{rank}.log',
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            WORLD_SIZE=str(world),
            MASTER_ADDR='127.0.0.1',
            MASTER_PORT=port,
        )
        for rank in range(world)
    ]
    return [exit_code(pid) for pid in processes]
