"""The sizes of a model: of a config, or of a small table that needs no network."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reczero.errors import UserError


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a dense decoder as in Llama, Mistral, Qwen2 and Qwen3: RMSNorm, rotary positions, gated feed-forward."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    head_dim: int
    tied: bool = False  # the vocabulary head is the embedding
    qkv_bias: bool = False
    o_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    @property
    def q_width(self) -> int:
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        return self.kv_heads * self.head_dim

    @property
    def block_linear(self) -> int:
        """W: weights of the linear layers of a block, without biases: q, k, v, o and three of the feed-forward part."""
        return self.hidden * (2 * self.q_width + 2 * self.kv_width + 3 * self.intermediate)

    @property
    def block_parameters(self) -> int:
        biases = self.qkv_bias * (self.q_width + 2 * self.kv_width) + self.o_bias * self.hidden
        biases += self.mlp_bias * (2 * self.intermediate + self.hidden)
        return self.block_linear + biases + 2 * self.hidden + self.qk_norm * 2 * self.head_dim

    @property
    def head(self) -> int:
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        return self.layers * self.block_parameters + self.hidden + self.head * (1 if self.tied else 2)

    def lora(self, rank: int) -> int:
        """Weights of adapters on all linear layers of the blocks: r (in + out) each."""
        d, q, k, f = self.hidden, self.q_width, self.kv_width, self.intermediate
        return self.layers * rank * ((d + q) + 2 * (d + k) + (q + d) + 3 * (d + f))

    def kv_bytes(self, width: int) -> int:
        """Keys and values of one token, all layers, `width` bytes a number."""
        return 2 * self.layers * self.kv_width * width

    @classmethod
    def from_config(cls, config: Any) -> "ModelShape":
        """Of a transformers config. Raises UserError where its architecture is none of those above."""
        if config.model_type not in DENSE:
            raise UserError(f"model: plans know {', '.join(DENSE)}, not {config.model_type}; name a --model of those.")
        attention_bias = bool(getattr(config, "attention_bias", False))
        return cls(
            layers=config.num_hidden_layers, hidden=config.hidden_size, intermediate=config.intermediate_size,
            heads=config.num_attention_heads, kv_heads=config.num_key_value_heads, vocab=config.vocab_size,
            head_dim=getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
            tied=config.tie_word_embeddings, qkv_bias=attention_bias or config.model_type == "qwen2",
            o_bias=attention_bias, mlp_bias=bool(getattr(config, "mlp_bias", False)),
            qk_norm=config.model_type == "qwen3",
        )  # fmt: skip


DENSE = ("llama", "mistral", "qwen2", "qwen3")
# From the models' published config.json, so that a plan needs no network.
_QWEN_7B = ModelShape(28, 3584, 18944, 28, 4, 152064, 128, qkv_bias=True)
SHAPES = {
    "smollm2-135m": ModelShape(30, 576, 1536, 9, 3, 49152, 64, tied=True),
    "Qwen/Qwen2.5-1.5B-Instruct": ModelShape(28, 1536, 8960, 12, 2, 151936, 128, tied=True, qkv_bias=True),
    "Qwen/Qwen2.5-7B-Instruct": _QWEN_7B,
    "Qwen/Qwen2.5-7B-Instruct-1M": _QWEN_7B,
    "Qwen/Qwen2.5-32B-Instruct": ModelShape(64, 5120, 27648, 40, 8, 152064, 128, qkv_bias=True),
    "Qwen/Qwen2.5-72B-Instruct": ModelShape(80, 8192, 29568, 64, 8, 152064, 128, qkv_bias=True),
}


def shape_of(name: str) -> ModelShape:
    """The sizes of a model: of `SHAPES` without a network, else by its config in a folder or on the hub.

    Raises UserError.
    """
    if name in SHAPES:
        return SHAPES[name]
    from transformers import AutoConfig

    from reczero.models import quiet, resolve_model

    place = resolve_model(name)
    if isinstance(place, Path) and (place / "adapter_config.json").is_file():
        raise UserError(f"model {name}: an adapter; name the model that it stands on.")
    try:
        with quiet():
            config = AutoConfig.from_pretrained(place, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        known = ", ".join(SHAPES)
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"model {name}: its config can't be had ({reason}); give a folder, or one of {known}."
        ) from error
    return ModelShape.from_config(config.get_text_config())
