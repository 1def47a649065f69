"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from factory.config import default_domains

TEACHER = "teacher"  # in place of a version: the teacher itself
DOMAINS, REGISTRY = Path("domains"), Path("registry")


def in_a_folder(given: Path | None) -> Path | None:
    """The callback of an option that names a file: what takes an hour to measure must not fail when it is written."""
    if given is not None and not given.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {given.parent}")
    return given


Domains = Annotated[
    Path,
    typer.Option(
        "--domains",
        metavar="DIR",
        callback=lambda given: default_domains() if given == DOMAINS else given,
        help="Folder of the YAML files; the shipped ones if there is no ./domains.",
    ),
]
RegistryFolder = Annotated[Path, typer.Option("--registry", metavar="DIR", help="Folder of the published students and bases.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and no progress.")]
Save = Annotated[
    Path | None,
    typer.Option("--save", metavar="FILE", callback=in_a_folder, help="Also write the JSON to this file."),
]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option("--device", help="Where models run.")]
Ref = Annotated[str, typer.Argument(help="NAME (its champion, otherwise its newest version), NAME@3 or NAME@champion.")]
AllMetrics = Annotated[bool, typer.Option("--all-metrics", help="Show every metric, not only the main ones.")]

Family = Annotated[str | None, typer.Option("--family", metavar="NAME", help="Name of a family file; `default` if left out.")]
Size = Annotated[str | None, typer.Option("--size", metavar="NAME", help="A size of a family; its default if left out.")]
Profile = Annotated[str, typer.Option("--profile", metavar="NAME", help="Settings of the family file, such as `demo`.")]
Seed = Annotated[int | None, typer.Option("--seed", min=0, max=2**32 - 1, help="Overrides the family's seed.")]

# Of `plan` and `build`, which take the same.
DomainOrAll = Annotated[str | None, typer.Argument(help="A domain; or --all.")]
All = Annotated[bool, typer.Option("--all", help="Every domain.")]
Baselines = Annotated[bool, typer.Option("--baselines", help="Also train and evaluate plain supervised fine-tuning.")]
Canaries = Annotated[
    int | None,
    typer.Option(
        "--canaries",
        min=0,
        max=64,
        help="Plant this many secrets, and measure how well they are memorized; 16 in a private domain if left out.",
    ),
]
PinnedBase = Annotated[
    str | None,
    typer.Option("--base", metavar="REF", help="Use this published base, even if its data or settings have changed since."),
]
RebuildBase = Annotated[bool, typer.Option("--rebuild-base", help="Make a new base, even if a published one would do.")]
