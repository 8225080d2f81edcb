"""The head, packed weights and frozen blocks against plain torch."""

import contextlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoConfig, AutoModelForCausalLM

from reczero.rollout import head as head_module
from reczero.rollout import packed
from reczero.rollout.frozen import States, above, frozen_blocks
from reczero.rollout.head import CHUNK, hidden_states, replaced_head, token_log_probs, widen
from reczero.rollout.packed import packed_weights

N, D, V = CHUNK + 44, 6, 37


def tiny(kind="llama", **settings):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 64, "pad_token_id": 0}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes | settings), dtype=torch.float32).eval()


def lora(model, layers=None):
    return get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], layers_to_transform=layers))


def problem(n=N, bias=True, guided=False, dtype=torch.float64):
    """Head, hidden states, targets and bits; the targets are among the allowed tokens."""
    torch.manual_seed(0)
    head = nn.Linear(D, V, bias=bias, dtype=dtype)
    hidden = torch.randn(n, D, dtype=dtype, requires_grad=True)
    allowed = torch.rand(n, V) < 0.3
    targets = torch.randint(V, (n,))
    allowed[torch.arange(n), targets] = True
    bits = np.packbits(allowed.numpy(), axis=1, bitorder="little") if guided else None
    return head, hidden, targets, bits


def plain(head, hidden, targets, bits, temperature):
    logits = F.linear(hidden, head.weight, head.bias) / temperature
    if bits is not None:
        logits = logits.masked_fill(~widen(bits, V, logits.device), float("-inf"))
    every = logits.log_softmax(-1)
    entropy = torch.special.entr(every.detach().exp()).sum(-1)
    return every.gather(1, targets[:, None])[:, 0], entropy


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("n", [1, CHUNK, N])
def test_log_probs_entropies_and_gradients_are_those_of_plain_torch(temperature, guided, bias, learns, n):
    head, hidden, targets, bits = problem(n, bias, guided)
    head.requires_grad_(learns)
    upstream = torch.randn(n, dtype=torch.float64)
    leaves = [hidden, *(head.parameters() if learns else ())]
    found = []
    for made in (token_log_probs, plain):
        log_probs, entropy = made(head, hidden, targets, bits, temperature)
        assert not entropy.requires_grad
        found.append([log_probs.detach(), entropy, *torch.autograd.grad(log_probs, leaves, upstream)])
    for got, want in zip(*found, strict=True):
        assert got.dtype == want.dtype and torch.allclose(got, want, rtol=0, atol=1e-10)


@pytest.mark.parametrize("frozen", ["weight", "bias", "hidden"])
def test_gradients_where_only_some_of_the_parts_learn(frozen):
    head, hidden, targets, _ = problem()
    leaves = {"weight": head.weight, "bias": head.bias, "hidden": hidden}
    leaves.pop(frozen).requires_grad_(False)
    got, want = (
        torch.autograd.grad(made(head, hidden, targets, None, 0.7)[0].sum(), list(leaves.values()))
        for made in (token_log_probs, plain)
    )
    assert all(torch.allclose(a, b, rtol=0, atol=1e-10) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize("learns", [False, True])
def test_gradcheck(learns, monkeypatch):
    monkeypatch.setattr(head_module, "CHUNK", 2)
    head, hidden, targets, bits = problem(5, guided=True)
    head.requires_grad_(learns)
    leaves = (hidden, head.weight, head.bias)

    def f(hidden, weight, bias):
        return head_module._TokenLogProbs.apply(hidden, weight, bias, targets, bits, 0.7)[0]

    assert torch.autograd.gradcheck(f, leaves)


def test_a_head_of_another_kind_goes_through_its_own_forward():
    head, hidden, targets, bits = problem(guided=True)

    class Other(nn.Linear):
        pass

    other = Other(D, V, dtype=torch.float64)
    other.load_state_dict(head.state_dict())
    got, want = (token_log_probs(h, hidden, targets, bits, 0.7) for h in (other, head))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-10) for a, b in zip(got, want, strict=True))
    got, want = (torch.autograd.grad(x[0].sum(), hidden)[0] for x in (got, want))
    assert torch.allclose(got, want, rtol=0, atol=1e-10)


def test_no_places_at_all():
    head, hidden, targets, _ = problem(0)
    log_probs, entropy = token_log_probs(head, hidden, targets)
    assert log_probs.shape == entropy.shape == (0,)
    log_probs.sum().backward()
    assert hidden.grad.shape == hidden.shape and (head.weight.grad is None or not head.weight.grad.any())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_types_give_float32_log_probs_and_gradients_of_their_own_type(dtype):
    head, hidden, targets, bits = problem(guided=True, dtype=dtype)
    log_probs, _ = token_log_probs(head, hidden, targets, bits)
    double = nn.Linear(D, V, dtype=torch.float64)
    double.load_state_dict(head.state_dict())
    want, _ = plain(double, hidden.double(), targets, bits, 1.0)
    assert log_probs.dtype == torch.float32 and torch.allclose(log_probs.double(), want, atol=0.03)
    log_probs.sum().backward()
    assert hidden.grad.dtype == head.weight.grad.dtype == dtype


class Largest(TorchDispatchMode):
    """The most rows of a tensor with V columns that any operation makes."""

    rows = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **kwargs or {})
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if torch.is_tensor(x) and x.dim() == 2 and x.shape[1] == V:
                self.rows = max(self.rows, x.shape[0])
        return out


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("guided", [False, True])
def test_never_more_than_a_chunk_of_logits(learns, guided, monkeypatch):
    monkeypatch.setattr(head_module, "CHUNK", 16)
    head, hidden, targets, bits = problem(200, False, guided)
    head.weight.requires_grad_(learns)
    with Largest() as seen:
        token_log_probs(head, hidden, targets, bits)[0].sum().backward()
    assert 0 < seen.rows <= 16 or (learns and seen.rows == V)


# --- packed weights ---------------------------------------------------------------------------------------------------


def logits(model, ids=None):
    with torch.no_grad():
        return model(torch.arange(1, 9)[None] if ids is None else ids, use_cache=False).logits


def forwards(model):
    return [name for name, module in model.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])  # qwen2 has biases
def test_packed_weights_give_the_same_logits(kind, rows):
    model = tiny(kind)
    ids = torch.randint(64, (1, rows))
    want = logits(model, ids)
    with packed_weights(model):
        assert len(forwards(model)) == 4 * 7 + 1
        assert torch.allclose(logits(model, ids), want, rtol=0, atol=1e-5)
    assert not forwards(model) and torch.equal(logits(model, ids), want)


@pytest.mark.parametrize("learns", [False, True])
def test_a_weight_changed_in_place_is_seen(learns):
    model = tiny().requires_grad_(learns)
    with packed_weights(model):
        before = logits(model)
    if learns:
        model(torch.arange(1, 9)[None]).logits.sum().backward()
        torch.optim.SGD(model.parameters(), lr=0.1).step()
    else:
        with torch.no_grad():
            model.model.layers[2].mlp.up_proj.weight.mul_(1.5)
    want = logits(model)
    with packed_weights(model):
        assert torch.allclose(logits(model), want, rtol=0, atol=1e-5) and not torch.allclose(before, want, atol=1e-4)


def test_adapters_merged_into_frozen_weights_are_seen():
    """PEFT adds to `weight.data`, which torch does not count as a change."""
    model = lora(tiny())
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p)
    with packed_weights(model):
        want = logits(model)
    merged = model.merge_and_unload()
    with packed_weights(merged):
        assert torch.allclose(logits(merged), want, atol=1e-4)


def test_copies_are_made_once_by_the_outermost_and_then_dropped(monkeypatch):
    model, made = tiny(), []
    real = torch.ops.mkldnn._reorder_linear_weight
    monkeypatch.setattr(
        torch.ops.mkldnn, "_reorder_linear_weight", lambda w: made.append(tuple(w.shape)) or real(w), raising=False
    )
    with packed_weights(model):
        for _ in range(2):
            with packed_weights(model), replaced_head(model, hidden_states):
                logits(model)
        assert all("forward" in vars(m) for m in model.modules() if type(m) is nn.Linear)  # the head's too
        assert len(made) == len(packed._laid_out) == 4 * 7 + 1
    assert not len(packed._laid_out)


@pytest.mark.parametrize("before", [True, False])
def test_an_exception_leaves_no_packed_forward_behind(before, monkeypatch):
    model = tiny()
    want = logits(model)
    if before:  # while packing
        calls, real = [], torch.ops.mkldnn._reorder_linear_weight

        def fails_at_the_third(weight):
            calls.append(1)
            if len(calls) == 3:
                raise MemoryError
            return real(weight)

        monkeypatch.setattr(torch.ops.mkldnn, "_reorder_linear_weight", fails_at_the_third, raising=False)
    with pytest.raises(MemoryError), packed_weights(model):
        raise MemoryError
    assert not forwards(model) and torch.equal(logits(model), want)


def test_packed_weights_of_a_lora_model():
    model = lora(tiny())
    for name, p in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(p)
    want = logits(model)
    with packed_weights(model):
        assert torch.allclose(logits(model), want, rtol=0, atol=1e-5)
    assert not forwards(model)
    model.unload()
    assert not torch.allclose(logits(model), want, atol=1e-3)  # the adapters did something


def test_other_types_are_left_alone():
    model = tiny().double()
    with packed_weights(model):
        assert not forwards(model)


def test_the_head_is_replaced_only_inside_and_puts_a_packed_one_back():
    model = tiny()
    with packed_weights(model):
        with contextlib.suppress(ValueError), replaced_head(model, hidden_states):
            assert logits(model).shape[-1] == 32
            raise ValueError
        assert logits(model).shape[-1] == 64
    assert not forwards(model)


# --- frozen blocks ----------------------------------------------------------------------------------------------------


def upper(model, layers):
    model.requires_grad_(False)
    for block in model.get_decoder().layers[4 - layers :]:
        block.requires_grad_(True)
    return model


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3", "mistral", "gpt_neox", "phi", "olmo2", "stablelm"])
def test_blocks_below_the_first_that_learns_are_counted(kind):
    for layers in (1, 3):
        assert frozen_blocks(upper(tiny(kind), layers)) == 4 - layers
    for layers in (0, 4):  # nothing learns, everything does
        assert frozen_blocks(upper(tiny(kind), layers)) == 0


def test_no_block_is_left_out_where_what_is_below_changes():
    model = upper(tiny(), 1)
    model.get_input_embeddings().requires_grad_(True)
    assert frozen_blocks(model) == 0
    model = upper(tiny(), 1)
    model.get_decoder().layers[1].input_layernorm.requires_grad_(True)
    assert frozen_blocks(model) == 1
    model = upper(tiny(), 1)
    model.get_decoder().layers[2].mlp.register_module("drop", nn.Dropout(0.1))
    assert frozen_blocks(model) == 2


def test_frozen_blocks_of_lora_models():
    assert frozen_blocks(lora(tiny())) == 0
    assert frozen_blocks(lora(tiny(), [2, 3])) == 2


def test_a_model_that_scales_its_inputs_computes_all_blocks():
    assert frozen_blocks(upper(tiny("granite", embedding_multiplier=12.0), 1)) == 0


@pytest.mark.parametrize("kind", ["gemma", "gemma3_text"])
def test_a_model_whose_embedding_itself_scales_does_not(kind):
    model = upper(tiny(kind), 1)
    assert frozen_blocks(model) == 3
    states = States(3)
    with states.watched(model) as seen:
        want = logits(model)
    with torch.no_grad(), above(model, 3):
        assert torch.equal(model(inputs_embeds=seen[0][None], use_cache=False).logits, want)


def test_the_update_from_states_is_the_plain_one_and_leaves_the_model_as_it_was():
    model, states = upper(tiny(), 2), States(2)
    ids = torch.arange(1, 9)[None]
    with states.watched(model) as seen:
        want = model(ids, use_cache=False).logits
    (x,) = seen
    assert not x.requires_grad and x.shape == (8, 32)
    with pytest.raises(ValueError), states.watched(model):
        raise ValueError
    assert torch.equal(model(ids, use_cache=False).logits, want) and len(seen) == 1
    assert not any(block._forward_pre_hooks for block in model.get_decoder().layers)

    def gradients(logits):
        return torch.autograd.grad(logits.logsumexp(-1).sum(), [p for p in model.parameters() if p.requires_grad])

    wanted = gradients(want)
    with above(model, 2):
        got = model(inputs_embeds=x[None], use_cache=False).logits
        assert torch.equal(got, want)
        assert all(torch.equal(a, b) for a, b in zip(gradients(got), wanted, strict=True))
    with pytest.raises(ValueError), above(model, 2):
        raise ValueError
    assert not forwards(model) and torch.equal(logits(model), want)
    model.train()
    frozen_blocks(model)
    assert model.training and not forwards(model)
