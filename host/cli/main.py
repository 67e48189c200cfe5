"""The `eden` command: one subcommand a stage, and `eden run` for all of them."""

import signal
import sys
from types import FrameType

import typer
from typer._click.exceptions import ClickException, NoArgsIsHelpError  # typer gives them no other name

import host.cli.board as board
import host.cli.characterise as characterise
import host.cli.cliffs as cliffs
import host.cli.networks as networks
import host.cli.rail as rail
import host.cli.run as run
import host.cli.serve as serve
import host.cli.study as study
import host.cli.temperature as temperature
import host.cli.trace as trace
from host.cli.console import complain
from host.cli.stages import use_one_thread
from profiles.errors import EdenError

app = typer.Typer(
    name="eden",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Characterise approximate DRAM, and run neural networks from it.

    The stages, in order: **scan** a board into an error profile, look at it with **profile**, **fit** error models
    to it, **train** a network, **boost** its error tolerance, measure that **tolerance**, **map** its tensors to DRAM,
    **infer** from that DRAM, **report**. **run** does them all from one plan and goes on where it was stopped.
    **study** says what all of it saves, **trace** replays a network's DRAM traffic, **board** what is at the other end
    of a link, **rail** what feeds the DRAM, **temperature** what heats it; **serve** shows scans while they run,
    on a page.
    """,
)
app.add_typer(board.board_app, name="board")
characterise.profile_app.command()(cliffs.cliffs)
app.add_typer(characterise.profile_app, name="profile")
app.add_typer(rail.rail_app, name="rail")
app.add_typer(study.study_app, name="study")
app.add_typer(temperature.temperature_app, name="temperature")
app.add_typer(trace.trace_app, name="trace")
for command in (
    *(characterise.scan, characterise.fit),
    *(networks.train, networks.boost, networks.tolerance, networks.map_, networks.infer),
    *(run.report, run.run, serve.serve),
):
    app.command(name=command.__name__.rstrip("_"))(command)


STOPPED = {128 + signal.SIGINT: "interrupted", 128 + signal.SIGTERM: "terminated"}


def _stop(signal_number: int, frame: FrameType | None) -> None:
    """Turn SIGINT and SIGTERM into an exception, so that rails return to nominal and files are closed."""
    raise SystemExit(128 + signal_number)


def main() -> None:
    """Entry point: every failure is one line that says what to do, and a non-zero exit status."""
    for stopping in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(stopping) is not signal.SIG_IGN:
            signal.signal(stopping, _stop)
    use_one_thread()
    try:
        typer.main.get_command(app).main(standalone_mode=False)
    except NoArgsIsHelpError as error:
        error.show()
        sys.exit(error.exit_code)
    except ClickException as error:
        complain(f"{error.format_message()} See --help.")
        sys.exit(error.exit_code)
    except EdenError as error:
        complain(str(error))
        sys.exit(1)
    except OSError as error:
        complain(f"{error}; what was finished is kept: mend it and run the same command again")
        sys.exit(1)
    except SystemExit as leaving:
        if leaving.code in STOPPED:
            complain(f"{STOPPED[leaving.code]}; what was finished is kept: run the same command again to go on")
        raise


if __name__ == "__main__":
    main()
