"""How every command ends: one sentence and an exit code instead of a traceback.

0 done    1 done, but a figure misses its bound    2 something a person wrote or chose is wrong
3 something we wrote is damaged    4 the federation cannot go on    130 interrupted
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from pm1_core.errors import PM1Error

if TYPE_CHECKING:
    Subcommands = argparse._SubParsersAction[argparse.ArgumentParser]

_DISK = {
    errno.ENOSPC: "the disk is full; free some space and run the command again",
    errno.EROFS: "the file system is read-only; choose a folder that can be written to",
    errno.EACCES: "permission denied; choose a folder that can be written to, or a file that can be read",
}


def grammar(name: str, description: str, epilog: str) -> tuple[argparse.ArgumentParser, Subcommands]:
    """The parser of a command, and the place for its subcommands, one of which is required."""
    root = argparse.ArgumentParser(
        prog=name,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return root, root.add_subparsers(dest="command", required=True, metavar="COMMAND")


def subcommand(commands: Subcommands, name: str, text: str, epilog: str) -> argparse.ArgumentParser:
    """A subcommand's parser, with a text and examples as they are written."""
    raw = argparse.RawDescriptionHelpFormatter
    return commands.add_parser(name, help=text, description=text, epilog=epilog, formatter_class=raw)


def guarded(name: str, command: Callable[[], None]) -> int:
    """Run `command` and return the exit code, with the reason on standard error."""
    try:
        command()
    except PM1Error as error:
        print(f"{name}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"{name}: interrupted; nothing half-written is left, run it again to go on", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 0
    except OSError as error:
        if error.filename is None and error.errno not in _DISK:
            raise
        reason = f"{(error.strerror or 'cannot be used').lower()}; name a file or folder that can be used"
        print(
            f"{name}: {error.filename or 'output'}: {_DISK.get(error.errno or 0, reason)}.", file=sys.stderr
        )
        return 2
    return 0
