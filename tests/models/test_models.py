"""Names lead to the right place, mistakes are told in one line, and what is loaded is what was saved."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from reczero.errors import UserError
from reczero.files import sha256
from reczero.models import export_adapter, export_model, load_policy, packaged, resolve_model

PROMPT = [{"role": "user", "content": "Rate it."}]


@pytest.fixture
def copy(tiny_model_dir, tmp_path) -> Path:
    return Path(shutil.copytree(tiny_model_dir, tmp_path / "model"))


def logits(folder) -> torch.Tensor:
    model, tokenizer = load_policy(folder)
    inputs = tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        return model(**inputs).logits


def test_resolve(tiny_model_dir):
    assert resolve_model(str(tiny_model_dir)) == tiny_model_dir
    assert resolve_model("Qwen/Qwen2.5-7B-Instruct") == "Qwen/Qwen2.5-7B-Instruct"


@pytest.mark.parametrize("name", ["./nowhere", "/no/such/folder", "a/b/c", "", "what is this?", "../up", "~/no-such"])
def test_what_can_be_no_model(name, monkeypatch, tmp_path):
    if name == "":
        monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="smollm2-135m|config.json"):
        resolve_model(name)


def test_a_folder_without_a_model_and_a_file(tmp_path):
    with pytest.raises(UserError, match=r"config\.json"):
        resolve_model(tmp_path)
    (tmp_path / "weights.bin").write_text("")
    with pytest.raises(UserError, match="a file"):
        resolve_model(tmp_path / "weights.bin")


def test_an_unknown_hub_name_is_one_line():
    with pytest.raises(UserError, match="cannot be had from the hub") as caught:
        load_policy("nobody/no-such-model")
    assert "\n" not in str(caught.value)


def test_load_policy(tiny_model_dir):
    model, tokenizer = load_policy(tiny_model_dir, "bfloat16")
    assert model.dtype == torch.bfloat16 and not model.training
    assert tokenizer.padding_side == "left" and tokenizer.pad_token_id == model.config.pad_token_id
    with pytest.raises(UserError, match="float32"):
        load_policy(tiny_model_dir, "int3")


def test_no_pad_token_becomes_the_end_token(copy):
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (copy / "tokenizer_config.json").write_text(json.dumps(settings))
    model, tokenizer = load_policy(copy)
    assert tokenizer.pad_token == tokenizer.eos_token and model.config.pad_token_id == tokenizer.eos_token_id


def damage(folder: Path, how: str) -> None:
    weights = folder / "model.safetensors"
    if how == "cut":
        weights.write_bytes(weights.read_bytes()[:5000])
    elif how == "pickled":
        weights.rename(folder / "pytorch_model.bin")
    elif how == "config":
        (folder / "config.json").write_text('{"model_type": ')
    elif how == "unknown":
        (folder / "config.json").write_text('{"model_type": "abacus"}')
    elif how == "tokenizer":
        (folder / "tokenizer.json").unlink()
    elif how == "template":
        (folder / "chat_template.jinja").unlink()
    elif how == "missing":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 3}))
    elif how == "shape":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 32}))


@pytest.mark.parametrize("how", ["cut", "pickled", "config", "unknown", "tokenizer", "template", "missing", "shape"])
def test_a_damaged_folder_is_one_line(copy, how):
    damage(copy, how)
    with pytest.raises(UserError, match=f"model {copy}") as caught:
        load_policy(copy)
    assert "\n" not in str(caught.value)


def test_export_of_a_full_model(tiny_model_dir, tmp_path):
    out = export_model(tiny_model_dir, tmp_path / "out")
    assert torch.equal(logits(out), logits(tiny_model_dir))
    export_model(tiny_model_dir, out)  # an earlier export may be replaced
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_export_merges_lora(tiny_model_dir, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    base, tokenizer = load_policy(tiny_model_dir)
    tuned = get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    tuned.save_pretrained(tmp_path / "lora")
    tokenizer.save_pretrained(tmp_path / "lora")
    inputs = tokenizer.apply_chat_template(PROMPT, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    with torch.no_grad():
        expected = tuned.eval()(**inputs).logits
    out = export_model(tmp_path / "lora", tmp_path / "out")
    assert not list(out.glob("adapter*")) and (out / "model.safetensors").is_file()
    assert torch.allclose(logits(out), expected, atol=1e-5)
    assert not torch.allclose(logits(tiny_model_dir), expected, atol=1e-2)


def test_an_adapter_is_exported_alone(tiny_model_dir, tmp_path):
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    base, tokenizer = load_policy(tiny_model_dir)
    get_peft_model(base, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)).save_pretrained(
        tmp_path / "lora"
    )
    tokenizer.save_pretrained(tmp_path / "lora")
    out = export_adapter(tmp_path / "lora", tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    assert torch.equal(logits(out), logits(tmp_path / "lora"))
    export_adapter(tmp_path / "lora", out)  # an earlier export may be replaced
    with pytest.raises(UserError, match="holds whole weights"):
        export_adapter(tiny_model_dir, tmp_path / "other")
    with pytest.raises(UserError, match="no model yet"):
        export_adapter(tmp_path / "none", tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_export_never_replaces_other_files(tiny_model_dir, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "letter").write_text("dear")
    with pytest.raises(UserError, match="holds other files"):
        export_model(tiny_model_dir, tmp_path / "home")
    with pytest.raises(UserError, match="no model yet"):
        export_model(tmp_path / "none", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_packaged_model_is_converted_once(monkeypatch, tmp_path, tiny_model_dir, capsys):
    monkeypatch.setenv("RECZERO_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(packaged, "packaged_file", lambda *args: None)
    monkeypatch.setattr(
        packaged, "_convert", lambda source, file, folder: shutil.copytree(tiny_model_dir, folder, dirs_exist_ok=True)
    )
    folder = resolve_model("smollm2-135m")
    assert folder == tmp_path / "cache" / "models" / "smollm2-135m" and (folder / "config.json").is_file()
    assert "converting" in capsys.readouterr().err
    monkeypatch.setattr(packaged, "_convert", None)
    assert resolve_model("smollm2-135m") == folder and capsys.readouterr().err == ""


def test_a_failed_conversion_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("RECZERO_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(packaged, "packaged_file", lambda *args: None)

    def full(source, file, folder):
        (folder / "config.json").write_text("{}")
        raise RuntimeError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(packaged, "_convert", full)
    with pytest.raises(UserError, match="disk is full"):
        resolve_model("smollm2-135m")
    assert list((tmp_path / "cache" / "models").iterdir()) == []


@pytest.mark.slow
def test_the_real_small_model():
    """Fetched (once) as anyone's would be: the weights' hash is pinned, the template is the publisher's."""
    folder = resolve_model("smollm2-135m")
    model, tokenizer = load_policy("smollm2-135m")
    assert model.name_or_path == "smollm2-135m"  # which an adapter notes as its base
    source = packaged.PACKAGED["smollm2-135m"]
    gguf = folder.parent.parent / "packages" / f"{source.package}-{source.version}" / source.file
    assert sha256(gguf) == source.sha256
    assert model.num_parameters() == 134_515_008 and len(tokenizer) == 49_152
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "What is the capital of France? Answer with one word."}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    answer = model.generate(**ids, max_new_tokens=12, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert "Paris" in tokenizer.decode(answer)
