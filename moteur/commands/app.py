"""The command's subcommands, its errors and its warnings."""

import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from moteur.commands.act_command import act
from moteur.commands.convert_command import convert
from moteur.commands.info_command import info
from moteur.commands.latents_command import latents
from moteur.commands.schema_command import schema
from moteur.commands.statistics_command import statistics

_ERROR = 2
_EXAMPLES = {
    info: ("moteur info sets/fold", "moteur info checkpoints/fold", "moteur info aloha"),
    schema: ("moteur schema sets/fold > robot.yaml", "moteur schema sets/fold --name mine --out robot.yaml"),
    statistics: (
        "moteur statistics sets/fold --robot robot.yaml --out statistics.json",
        "moteur statistics sets/a sets/b --episodes 0:80 --episodes all --out statistics.json",
    ),
    latents: ("moteur latents checkpoints/3b sets/fold --robot robot.yaml --out latents",),
    convert: ("moteur convert Cosmos-Tokenizer-CI8x8 --out cosmos",),
    act: ("moteur act checkpoints/fold sets/fold --episode 3 --every 10 --out predicted.npz",),
}


class _Commands(TyperGroup):
    """Shows the user's errors and the library's warnings as one line each on standard error."""

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401  # typer's own classes are private
        with warnings.catch_warnings():
            warnings.simplefilter("always", UserWarning)
            warnings.showwarning = _show_warning
            try:
                return super().invoke(ctx)
            except (ValueError, OSError, ModuleNotFoundError) as error:
                missing = isinstance(error, ModuleNotFoundError) and "pip install" not in str(error)
                if ctx.params["debug"] or missing:  # a module that no extra brings is a defect
                    raise
                typer.echo(f"error: {_one_line(error)}", err=True)
                raise typer.Exit(_ERROR) from error


app = typer.Typer(
    cls=_Commands,
    name="moteur",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _command, _lines in _EXAMPLES.items():
    app.command(epilog="\b\nExamples:\n" + "\n".join(f"  {line}" for line in _lines), no_args_is_help=True)(_command)


@app.callback()
def _options(
    *, debug: Annotated[bool, typer.Option("--debug", help="Show where an error was raised.")] = False
) -> None:
    """Building blocks for vision-language-action models: look at sets and checkpoints, prepare data, try a model."""
    assert isinstance(debug, bool)  # read by _Commands


def main() -> None:
    """Run the command and end the process: 0 for success, 2 for an error of the user."""
    app()


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def _show_warning(message: Warning | str, *_: object) -> None:
    typer.echo(f"warning: {_one_line(message)}", err=True)
