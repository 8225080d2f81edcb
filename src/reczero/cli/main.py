"""The `reczero` command: its subcommands, and how mistakes are told.

Nothing heavy is imported here or at the top of a command's file, so that `--help` answers at once.
"""

import io
import signal
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

from reczero import __version__
from reczero.cli import bench, compare, data, doctor, export, launch, plan, predict, report, serve, teach, train
from reczero.errors import UserError, printable
from reczero.files import write_error

app = typer.Typer(
    name="reczero",
    help="Teach a language model to think before it recommends.\n\nExample: reczero train quickstart --out runs/demo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"reczero {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    pass


app.command()(doctor.doctor)
app.add_typer(data.app, name="data")
app.command()(teach.teach)
app.command()(teach.traces)
app.command()(train.train)
app.add_typer(launch.app, name="launch")
app.command()(plan.plan)
app.command()(compare.compare)
app.add_typer(bench.app, name="bench")
app.command()(report.report)
app.command()(export.export)
app.command()(predict.predict)
app.command()(predict.join)
app.command()(serve.recommend)
app.command()(serve.serve)


def main() -> None:
    """The console script."""
    for stream in (sys.stdout, sys.stderr):  # what a terminal's encoding lacks is shown as a question mark
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # unwinds, so that nothing half-written is left behind
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run one command and return the exit code: 2 for what the user can mend (told in one line), 130 for Ctrl-C.

    Anything else is a defect of ours and keeps its traceback.
    """
    try:
        code = app(args=list(arguments), prog_name="reczero", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except KeyboardInterrupt:
        return 130
    except typer.Abort:
        return 130
    except Exception as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()  # type: ignore[attr-defined]
            return 2
        told = _told(error)
        if told is None:
            raise
        print("error:", printable(told), file=sys.stderr)
        return 2


def _told(error: Exception) -> str | None:
    if isinstance(error, UserError):
        return str(error)
    if hasattr(error, "format_message"):  # how the command was typed; the class moves between versions of Typer
        context = getattr(error, "ctx", None)
        said = error.format_message()
        said += "" if said.endswith((".", "?")) else "."
        return f"{said} See `{context.command_path if context else 'reczero'} --help`."
    full = write_error(error)
    return str(full) if full else None


if __name__ == "__main__":
    main()
