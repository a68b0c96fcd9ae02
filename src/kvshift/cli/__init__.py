"""The command line: one thin file a command; heavy imports wait until a command runs."""

from __future__ import annotations

import errno
import io
import os
import sys
import time

import typer

from kvshift import __version__
from kvshift.cli import bench, convert, doctor, inspect, pilot, reproduce, train
from kvshift.errors import KVShiftError, OutputError, UsageError
from kvshift.processes import spin_briefly

INTERRUPTED = 130

app = typer.Typer(
    name="kvshift",
    help="KV shifting attention: find out on your own text whether it pays off.",
    epilog="Exit codes: 0 done, 2 usage, 3 data, 4 unsupported model, 5 output folder, 6 budget too small, "
    "7 too many failed runs, 130 interrupted (start again with the same line to go on).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"kvshift {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version and leave."
    ),
) -> None:
    pilot.STARTED = time.monotonic()


app.command("pilot")(pilot.pilot)
app.command("train")(train.train)
app.command("doctor")(doctor.doctor)
app.command("convert")(convert.convert)
app.command("inspect")(inspect.inspect)
app.command("reproduce")(reproduce.reproduce)
app.command("bench")(bench.bench)


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns its exit code. What the user can mend is one line on standard error."""
    arguments = sys.argv[1:] if arguments is None else arguments
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal without "×" or "✔" shows a question mark
            stream.reconfigure(errors="replace")
    spin_briefly()
    try:
        _refuse_unwritable(arguments)
        code = app(args=arguments, prog_name="kvshift", standalone_mode=False)
        if code == INTERRUPTED:  # the parser's own way to report Ctrl-C
            raise KeyboardInterrupt
        return code if isinstance(code, int) else 0
    except KVShiftError as error:
        return _complain(error)
    except typer.Exit as end:
        return end.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _say(pilot.resume_line(arguments) or "Interrupted.")
        return INTERRUPTED
    except OSError as error:
        if error.errno == errno.EPIPE:  # `kvshift … | head`: nobody reads any more
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
            return 0
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where = f" while writing {error.filename}" if error.filename else ""
            return _complain(OutputError(f"The disk is full{where}. Free some space, then start again."))
        raise
    except Exception as error:
        if (message := _usage(error)) is not None:
            return _complain(UsageError(message))
        raise


def _refuse_unwritable(arguments: list[str]) -> None:
    """What the user typed is written into files, which hold Unicode only."""
    for argument in arguments:
        shown = os.fsencode(argument).decode("utf-8", "replace")
        if shown != argument:
            raise UsageError(f"{shown!r} is not UTF-8; rename that file or folder, or name it by a pattern.")


def _usage(error: Exception) -> str | None:
    """The message of what the command-line parser refused, with where to read more."""
    if not hasattr(error, "format_message"):
        return None
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "kvshift"
    return f"{error.format_message()} See {command} --help."


def _complain(error: KVShiftError) -> int:
    _say(f"Error: {' '.join(str(error).split())}", style="bold red")
    return error.exit_code


def _say(text: str, style: str = "") -> None:
    from rich.console import Console
    from rich.text import Text

    Console(stderr=True).print(Text(text, style=style), soft_wrap=True)
