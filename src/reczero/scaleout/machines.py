"""What a plan is made for: GPUs by their datasheets, or a machine that was measured (`reczero bench plan`)."""

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from reczero.errors import UserError
from reczero.files import cache_dir, read_json

GB, TFLOPS = 1e9, 1e12


class Machine(BaseModel):
    """One GPU (or the processor of a machine without) and how it is connected. Sizes are bytes, rates are per second.

    The first part is what its maker says; the second what is reached of it, which is assumed for every GPU here, since
    none was at hand, and measured by `reczero bench plan`. Written to a file (`--machine FILE`), it is yours to change.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    source: str = Field(description="where the figures are from")
    flops: float = Field(gt=0, description="peak of dense matrix products, a multiplication and an addition are two")
    memory: float = Field(gt=0)
    bandwidth: float = Field(gt=0, description="of reading that memory")
    link: float = Field(gt=0, description="from GPU to GPU in a node, one direction")
    network: float = Field(gt=0, description="of one GPU to other nodes, one direction")

    update_share: float = Field(0.4, gt=0, le=1, description="of `flops`, reached in forward and backward passes")
    decode_share: float = Field(0.6, gt=0, le=1, description="of `bandwidth`, reached in decoding steps")
    comm_share: float = Field(0.7, gt=0, le=1, description="of `link` and `network`, reached in collectives")
    step_seconds: float = Field(0.005, ge=0, description="of a decoding step, beside arithmetic and reading")
    overlap: bool = Field(True, description="a decoding step reads weights while it computes")
    fixed: float = Field(4 * GB, ge=0, description="bytes of libraries, context and buffers before any tensor")
    activation_factor: float = Field(
        1.1, gt=0, description="bytes held for a byte of activations: fragments, transients"
    )
    packed: bool = Field(False, description="a second copy of fp32 weights is kept in a step (CPU)")
    measured: bool = False


def _gpu(
    name: str, source: str, tflops: float, memory: float, bandwidth: float, link: float, network: float
) -> Machine:
    return Machine(
        name=name, source=source, flops=tflops * TFLOPS, memory=memory * GB, bandwidth=bandwidth * GB, link=link * GB,
        network=network * GB,
    )  # fmt: skip


# TFLOP/s of dense bf16 (datasheets print twice as much, with sparsity), GB, and GB/s: memory, NVLink or PCIe in one
# direction (half of what datasheets print), network in one direction.
_DGX = "network: that of the maker's 8-GPU system"
_PCIE = "network: assumed, 100 Gbit/s a GPU"
GPUS = {
    machine.name: machine
    for machine in (
        _gpu("h100", f"NVIDIA H100 datasheet, SXM; {_DGX} (DGX H100, 400 Gbit/s a GPU)", 989, 80, 3350, 450, 50),
        _gpu("h200", f"NVIDIA H200 datasheet, SXM; {_DGX} (DGX H200, 400 Gbit/s a GPU)", 989, 141, 4800, 450, 50),
        _gpu("h20", "server makers' lists, for NVIDIA has no public datasheet; network: assumed, as DGX H100's",
             148, 96, 4000, 450, 50),
        _gpu("b200", f"NVIDIA DGX B200 datasheet, an eighth; {_DGX} (400 Gbit/s a GPU)", 2250, 180, 8000, 900, 50),
        _gpu("a100", f"NVIDIA A100 datasheet, 80 GB SXM; {_DGX} (DGX A100, 200 Gbit/s a GPU)", 312, 80, 2039, 300, 25),
        _gpu("l40s", f"NVIDIA L40S datasheet, PCIe 4.0 x16; {_PCIE}", 362, 48, 864, 32, 12.5),
        _gpu("a10", f"NVIDIA A10 datasheet, PCIe 4.0 x16; {_PCIE}", 125, 24, 600, 32, 12.5),
    )
}  # fmt: skip


def own_profile() -> Path:
    """Where `reczero bench plan` leaves the profile of this machine."""
    return cache_dir() / "machine.json"


def find_machine(gpu: str, file: Path | None = None) -> Machine:
    """The machine in `file`, else a GPU by its name; `cpu` is this machine, as it was measured. Raises UserError."""
    if file is None and gpu != "cpu":
        if gpu.lower() not in GPUS:
            raise UserError(
                f"--gpu {gpu}: not known; known are {', '.join(GPUS)} and cpu, or give --machine FILE.json."
            )
        return GPUS[gpu.lower()]
    path = file or own_profile()
    if not path.is_file():
        how = "`reczero bench plan` measures this machine and writes it"
        raise UserError(f"{f'--machine {path}' if file else '--gpu cpu'}: no profile at {path}; {how}.")
    try:
        return Machine.model_validate(read_json(path))
    except ValidationError as error:
        mistakes = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise UserError(f"{path}: not a machine's profile ({mistakes}); mend it or measure anew.") from error
