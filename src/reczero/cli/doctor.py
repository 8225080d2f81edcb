"""`reczero doctor`: what this machine has, what is missing, and what to do about it."""

import json
import os
import platform
import shutil
import sys
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer

from reczero.machine import multiplies_bfloat16

GIB = 1024**3
ENOUGH_DISK = 3.0  # GiB: the packaged model as fetched and as converted, and a few checkpoints of it
ENOUGH_MEMORY = 6.0  # GiB: the packaged model in fp32 with gradients, optimizer and activations


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """Show versions, cores, memory, devices, the cache, and what is missing.

    Example: reczero doctor --json
    """
    facts = examine()
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
    else:
        _print(facts)


def examine() -> dict[str, Any]:
    """Everything doctor knows, as JSON values; sizes in GiB. `problems` holds {what, do} for each thing to mend."""
    problems: list[dict[str, str]] = []
    facts = {
        "versions": _versions(problems),
        "machine": _machine(problems),
        "torch": _torch(problems),
        "cache": _cache(problems),
    }
    return facts | {"problems": problems}


def _versions(problems: list[dict[str, str]]) -> dict[str, str | None]:
    """The versions of what our own metadata requires, extras included; None where it is not installed."""
    from packaging.requirements import Requirement

    from reczero import __version__

    versions: dict[str, str | None] = {"reczero": __version__, "python": platform.python_version()}
    try:
        declared = metadata.requires("reczero") or []
    except metadata.PackageNotFoundError:
        declared = []
        problems.append({"what": "reczero runs from a source tree", "do": "pip install it, or run `make install`"})
    for requirement in map(Requirement, declared):
        optional = "extra ==" in str(requirement.marker)
        if requirement.name == "reczero":
            continue
        try:
            found = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            found = None
            if not optional:
                problems.append({"what": f"{requirement.name} is missing", "do": f"pip install '{requirement}'"})
        if found and not requirement.specifier.contains(found, prereleases=True):
            what = f"{requirement.name} {found} is not {requirement.specifier}"
            wanted = f"{requirement.name}{requirement.specifier}"
            problems.append({"what": what, "do": f"pip install '{wanted}'"})
        versions[requirement.name] = found
    return versions


def _machine(problems: list[dict[str, str]]) -> dict[str, Any]:
    import psutil

    memory = psutil.virtual_memory()
    if memory.total / GIB < ENOUGH_MEMORY:
        what = f"{memory.total / GIB:.1f} GiB of memory"
        problems.append({"what": what, "do": f"have {ENOUGH_MEMORY:g} GiB for the quickstart, or a smaller batch"})
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cores": usable,
        "memory": round(memory.total / GIB, 1),
        "memory_free": round(memory.available / GIB, 1),
    }


def _torch(problems: list[dict[str, str]]) -> dict[str, Any]:
    try:
        import torch
    except (ImportError, OSError) as error:
        problems.append({"what": f"torch cannot be imported ({error})", "do": "see README, 'CPU or CUDA'"})
        return {"threads": None, "devices": [], "bfloat16": False}
    devices = [{"name": "cpu", "memory": None}]
    for index in range(torch.cuda.device_count()):
        found = torch.cuda.get_device_properties(index)
        devices.append({"name": f"cuda:{index} {found.name}", "memory": round(found.total_memory / GIB, 1)})
    if torch.backends.mps.is_available():
        devices.append({"name": "mps", "memory": None})
    if shutil.which("nvidia-smi") and not torch.cuda.is_available():
        what = f"an NVIDIA driver is here, but torch {torch.__version__} cannot use it"
        problems.append({"what": what, "do": "install a CUDA build of torch: README, 'CPU or CUDA'"})
    return {"threads": torch.get_num_threads(), "devices": devices, "bfloat16": multiplies_bfloat16()}


def _cache(problems: list[dict[str, str]]) -> dict[str, Any]:
    from reczero.data import PUBLISHED
    from reczero.files import cache_dir
    from reczero.models.packaged import PACKAGED, SHIPPED, packaged_dir

    folder = cache_dir()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    free = shutil.disk_usage(there).free / GIB
    move = "set RECZERO_HOME to a folder elsewhere"
    if not (there.is_dir() and os.access(there, os.W_OK | os.X_OK)):
        problems.append({"what": f"the cache {folder} may not be written", "do": move})
    if free < ENOUGH_DISK:
        problems.append({"what": f"{free:.1f} GiB free for the cache {folder}", "do": f"free some space, or {move}"})
    return {
        "folder": str(folder),
        "disk_free": round(free, 1),
        "models": {name: (packaged_dir(name) / "config.json").is_file() for name in PACKAGED}
        | dict.fromkeys(SHIPPED, True),
        "data": {name: _holds_files(folder / "data" / name) for name in PUBLISHED},
    }


def _holds_files(folder: Path) -> bool:
    return folder.is_dir() and any(folder.iterdir())


def _print(facts: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console, table = Console(), Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    machine, torch, cache = facts["machine"], facts["torch"], facts["cache"]

    def row(name: str, value: str) -> None:
        table.add_row(f"[bold]{name}[/bold]", escape(value))

    for name, version in facts["versions"].items():
        row(name, version or "-")
    row("executable", sys.executable)
    row("system", f"{machine['system']}, {machine['cores']} cores, torch uses {torch['threads'] or 'none'}")
    row("memory", f"{machine['memory']} GiB, {machine['memory_free']} free")
    for device in torch["devices"]:
        row("device", device["name"] + (f", {device['memory']} GiB" if device["memory"] else ""))
    row("bfloat16", "by the processor too" if torch["bfloat16"] else "slow on the processor: model.dtype=float32")
    row("cache", f"{cache['folder']}, {cache['disk_free']} GiB free (RECZERO_HOME moves it)")
    for kind in ("models", "data"):
        for name, there in cache[kind].items():
            row(f"  {kind}", f"{name}: {'there' if there else 'fetched when it is needed'}")
    console.print(table)
    for problem in facts["problems"]:
        console.print(f"[red]missing[/red] {escape(problem['what'])}: {escape(problem['do'])}")
    if not facts["problems"]:
        console.print("[green]nothing is missing[/green]")
