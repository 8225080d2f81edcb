"""Loading a policy and its tokenizer, and writing one out. Weights are safetensors only: nothing is unpickled."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reczero.errors import UserError
from reczero.files import atomic_dir, read_json, sha256, write_error
from reczero.models.packaged import PACKAGED, SHIPPED, quiet, resolve_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DTYPES = ("float32", "bfloat16", "float16", "auto")
ADAPTER = "adapter_config.json"


def load_policy(
    name: str | Path, dtype: str = "float32", merge: bool = True
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model in evaluation mode, on the CPU, and its tokenizer.

    name: what `resolve_model` takes; a folder with a LoRA adapter is loaded with its base model and merged, or, without
    `merge`, as an adapter that can go on learning. dtype: one of `DTYPES`. The tokenizer pads on the left, with the end
    token where it has no pad token, and has a chat template. Raises UserError.
    """
    if dtype not in DTYPES:
        raise UserError(f"dtype {dtype!r}: must be one of {', '.join(DTYPES)}")
    place = resolve_model(name)
    if isinstance(place, Path) and (place / ADAPTER).is_file():
        return _load_adapter(place, dtype, merge)

    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(name)
    with quiet(), _told(name):
        model, found = AutoModelForCausalLM.from_pretrained(
            place,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    if missing := sorted(found["missing_keys"]):  # transformers would go on with random numbers in their place
        raise UserError(f"model {name}: {len(missing)} weights are missing, {missing[0]} among them; get it anew")
    if str(name) in PACKAGED:
        model.name_or_path = str(name)  # which adapters note as their base: it leads to the weights on any machine
    model.config.pad_token_id = model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer


def load_tokenizer(name: str | Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a policy, as `load_policy` gives it, without its weights. Raises UserError."""
    place = resolve_model(name)
    if isinstance(place, Path) and (place / ADAPTER).is_file() and not (place / "tokenizer_config.json").is_file():
        return load_tokenizer(_base_of(place))

    from transformers import AutoTokenizer

    with quiet(), _told(name):
        tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False)
    if not tokenizer.chat_template:
        raise UserError(f"model {name}: its tokenizer has no chat template; choose an instruction-tuned model")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer


def export_model(run_model_dir: Path, out: Path, dtype: str = "auto") -> Path:
    """Write the model of a run to the folder `out` as transformers and vLLM load it; LoRA is merged into its base.

    dtype: of the written weights; auto keeps the one they were saved in. `out` may be new, empty, or an earlier export.
    Raises UserError.
    """
    if not run_model_dir.is_dir():
        raise UserError(f"{run_model_dir} is missing: the run has no model yet; let `reczero train` finish first")
    with atomic_dir(out, ours="config.json") as folder:  # before loading: a place that cannot be had is told at once
        model, tokenizer = load_policy(run_model_dir, dtype)
        with quiet():
            model.save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    return out


def export_adapter(run_model_dir: Path, out: Path) -> Path:
    """Write the LoRA adapter of a run's model alone to the folder `out`: a few megabytes, which `load_policy` and PEFT
    load with their base model. `out` as for `export_model`. Raises UserError."""
    if not run_model_dir.is_dir():
        raise UserError(f"{run_model_dir} is missing: the run has no model yet; let `reczero train` finish first")
    if not (run_model_dir / ADAPTER).is_file():
        raise UserError(f"{run_model_dir}: holds whole weights, no adapter; export it without --adapter")
    with atomic_dir(out, ours=ADAPTER) as folder:
        for name in (ADAPTER, "adapter_model.safetensors"):
            shutil.copyfile(run_model_dir / name, folder / name)  # which others may read, as what else is exported
    return out


def weights_mark(model: str) -> Any:
    """What tells a model from others: the hashes of a folder's weights, wherever it lies, or its name."""
    return {path.name: sha256(path) for path in sorted(Path(model).glob("*.safetensors"))} or model


def _base_of(folder: Path) -> str:
    base = read_json(folder / ADAPTER).get("base_model_name_or_path")
    if not base:
        raise UserError(f"model {folder}: its {ADAPTER} names no base model")
    return base


def _load_adapter(folder: Path, dtype: str, merge: bool) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    model, tokenizer = load_policy(_base_of(folder), dtype)

    from peft import PeftModel

    with quiet(), _told(folder):
        adapted = PeftModel.from_pretrained(model, folder, is_trainable=not merge)
        return (adapted.merge_and_unload() if merge else adapted).eval(), tokenizer


@contextmanager
def _told(name: str | Path) -> Iterator[None]:
    """What transformers and the hub raise for a model that cannot be had, as one line that says what to do."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        if told := write_error(error):  # the hub's cache is on a disk too
            raise told from error
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if isinstance(name, Path) or Path(name).expanduser().is_dir() or name in PACKAGED:
            raise UserError(f"model {name} cannot be loaded as transformers and safetensors ({reason})") from error
        raise UserError(
            f"model {name} cannot be had from the hub: check the name, your access to it and the network, "
            f"or give a local folder or one of: {', '.join((*PACKAGED, *SHIPPED))} ({reason})"
        ) from error
