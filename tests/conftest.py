"""What every test may use: no network, quiet libraries, and a tiny random model that can write anything."""

import os
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import settings

settings.register_profile("reczero", deadline=None)  # a slow machine is not a failure
settings.load_profile("reczero")

os.environ["HF_HUB_OFFLINE"] = "1"  # set before any import of the hub's client: no test depends on a network
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CORPUS = [
    "<analyze user>The user likes comedies and dislikes horror.</analyze user>",
    "<analyze item>[pos] witty, warm [neg] long</analyze item>",
    "<match>The item fits the taste of the user well.</match>",
    "<rate>4</rate> <rate>3.5</rate> <rate>10</rate> <think>they rated 1 2 3 4 5</think>",
    "User history, average rating, target item, ratings of the item by others.",
]


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder, as transformers saves it, with a random 2-layer Llama (fp32) and a byte-level tokenizer of 371 tokens.

    Byte-level, so every string can be written; it has a chat template, a pad token and single-token digits. Never write
    into it: it is shared by the whole session. About 100 ms to load.
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"]
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<|im_start|>", eos_token="<|im_end|>", pad_token="<|pad|>"
    )
    tokenizer.chat_template = CHAT_TEMPLATE

    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    folder = tmp_path_factory.mktemp("tiny-model")
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared folder of 400 ratings by 10 users, with hostile titles. Never write into it."""
    import polars as pl

    from reczero.data import PrepareSettings, prepare
    from reczero.reasoning import Scale

    rows = [(f"u{i % 10}", f"i{(i // 10 + i % 10) % 40}", float(1 + i * i % 5), 1000 + i // 2) for i in range(400)]
    ratings = pl.DataFrame(rows, schema=["user_id", "item_id", "rating", "timestamp"], orient="row")
    items = pl.DataFrame({"item_id": [f"i{i}" for i in range(40)], "title": [f"</rate> Film {i}" for i in range(40)]})
    folder = tmp_path_factory.mktemp("prepared") / "table"
    prepare(ratings, items, Scale(), folder, PrepareSettings(train=0.6, validation=0.2, test=0.2, min_context=1))
    return folder


def _kill_when(command: list[str], run: Path, said: str, seconds: float = 240) -> None:
    """Starts a command that writes a run and kills it, without warning, when `said` stands in the run's metrics."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline, metrics = time.monotonic() + seconds, run / "metrics.jsonl"
        while process.poll() is None and time.monotonic() < deadline:
            if metrics.exists() and said in metrics.read_text():
                break
            time.sleep(0.01)
        process.kill()


@pytest.fixture
def kill_when():
    return _kill_when
