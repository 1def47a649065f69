"""What is loaded of a model's folder is what its checksum is of, and nothing in it is run."""

from __future__ import annotations

import hashlib
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import tiny

from factory.config.schema import ModelSpec
from factory.errors import ModelResolutionError
from factory.models.folders import load_config, load_tokenizer, load_weights, weight_files
from factory.models.references import load_encoder, resolve

MARK = "ran.txt"  # written by code in a folder, if it runs


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny Llama with its tokenizer; its weights in one file."""
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "home"))
    tiny.llama(layers=1).save_pretrained(tmp_path / "m")
    tiny.tokenizer().save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def refused(folder: Path) -> str:
    with pytest.raises(ModelResolutionError) as caught:
        weight_files(folder, "path:m")
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------------- what is loaded


def test_a_pickle_beside_other_safetensors_is_not_what_is_loaded(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").rename(folder / "decoy.safetensors")
    assert refused(folder) == (
        "path:m has decoy.safetensors, but neither model.safetensors nor model.safetensors.index.json; "
        "save it with transformers, or convert it to .gguf"
    )
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(tmp_path / MARK)))
    assert "its weights only in pytorch_model.bin, which can run code when loaded" in refused(folder)
    with pytest.raises(ModelResolutionError, match=r"cannot be loaded: .*no file named model\.safetensors"):
        load_weights(folder, torch.float32)
    assert not (tmp_path / MARK).exists()


def test_the_checksum_is_of_the_weights_that_are_loaded(folder: Path, tmp_path: Path) -> None:
    own = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    save_file({"weight": torch.ones(1)}, folder / "consolidated.safetensors")
    (folder / "training_args.bin").write_bytes(b"a pickle that nothing loads")
    assert weight_files(folder, "path:m") == [folder / "model.safetensors"]
    assert resolve(ModelSpec(model="path:m", license="mit"), root=tmp_path).sha256 == own


def test_of_several_shards_the_index_says_which_are_loaded(folder: Path, tmp_path: Path) -> None:
    tiny.llama(layers=1).save_pretrained(folder, max_shard_size="20KB")
    (folder / "model.safetensors").unlink(missing_ok=True)
    shards = weight_files(folder, "path:m")
    assert len(shards) > 1 and {path.name for path in shards} == {path.name for path in folder.glob("model-*.safetensors")}
    before = resolve(ModelSpec(model="path:m", license="mit"), root=tmp_path).sha256
    save_file({"weight": torch.ones(1)}, folder / "model-99.safetensors")
    assert resolve(ModelSpec(model="path:m", license="mit"), root=tmp_path).sha256 == before
    save_file({key: value + 1 for key, value in load_file(shards[0]).items()}, shards[0], metadata={"format": "pt"})
    assert resolve(ModelSpec(model="path:m", license="mit"), root=tmp_path).sha256 != before


@pytest.mark.parametrize("shard", ["../other/model.safetensors", "/etc/passwd.safetensors", "pytorch_model.bin"])
def test_a_shard_that_is_no_safetensors_file_of_the_folder_is_refused(folder: Path, shard: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    assert f"names '{shard}', no .safetensors file beside it; do not use it" in refused(folder)


@pytest.mark.parametrize("content", ["{", "[]", '{"weight_map": 3}', "[" * 100_000])
def test_an_index_that_is_none_is_one_line(folder: Path, content: str) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" in refused(folder)


def test_a_config_cannot_name_other_weights_nor_bring_an_adapter(folder: Path) -> None:
    change(folder / "config.json", transformers_weights="decoy.safetensors")
    assert "its config.json names other weights (transformers_weights)" in refused(folder)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "elsewhere"}))
    assert "has an adapter (adapter_config.json); merge it into the model, or remove it" in refused(folder)


def test_missing_weights_are_never_random_numbers(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelResolutionError, match=r"lacks 1 weights, model\.layers\.0\.mlp\.up_proj\.weight for one"):
        load_weights(folder, torch.float32)


def test_cut_off_weights_are_one_line(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ModelResolutionError, match="m cannot be loaded: ") as caught:
        load_weights(folder, torch.float32)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------------------------- own code


def with_code(folder: Path, mark: Path) -> None:
    """A config and a tokenizer of a kind that only the folder's own code knows."""
    (folder / "own.py").write_text(f"from pathlib import Path\nPath({str(mark)!r}).touch()\nclass Own: ...\n")
    change(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"})
    change(folder / "tokenizer_config.json", tokenizer_class="Own", auto_map={"AutoTokenizer": ["own.Own", None]})


@pytest.mark.parametrize("load", [load_config, lambda folder: load_weights(folder, torch.float32)])
def test_code_in_a_folder_is_never_run_nor_asked_about(folder: Path, tmp_path: Path, load: Any) -> None:
    with_code(folder, tmp_path / MARK)
    with pytest.raises(ModelResolutionError, match="m needs code of its own, which is never run; choose a model that"):
        load(folder)
    assert not (tmp_path / MARK).exists()


def test_the_tokenizer_s_code_is_not_run_either(folder: Path, tmp_path: Path) -> None:
    with_code(folder, tmp_path / MARK)
    with pytest.raises(ModelResolutionError):
        load_tokenizer(folder)
    assert not (tmp_path / MARK).exists()


def test_a_tokenizer_at_which_its_library_panics_is_one_line(tmp_path: Path) -> None:
    """A panic of Rust is no Exception. This one was found by an hour of fuzzing (tests/fuzz)."""
    tiny.tokenizer().save_pretrained(tmp_path)
    path = tmp_path / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["continuing_subword_prefix"] = "longer than a token"
    path.write_text(json.dumps(content))
    with pytest.raises(ModelResolutionError, match=r"cannot be loaded: range end index \d+ out of range"):
        load_tokenizer(tmp_path)


# -------------------------------------------------------------------------------------------------------------- encoders


def encoder(folder: Path, *modules: tuple[str, str]) -> None:
    folder.mkdir()
    listed = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(modules)]
    (folder / "modules.json").write_text(json.dumps(listed))


def test_an_encoder_s_checksum_is_of_the_weights_of_all_its_modules(folder: Path, tmp_path: Path) -> None:
    encoder(tmp_path / "e", ("", "sentence_transformers.models.Transformer"), ("2_Dense", "sentence_transformers.models.Dense"))
    (tmp_path / "e" / "2_Dense").mkdir()
    save_file({"weight": torch.ones(1)}, tmp_path / "e" / "model.safetensors")
    spec = ModelSpec(model="path:e", license="mit")
    alone = resolve(spec, root=tmp_path).sha256
    save_file({"weight": torch.ones(2)}, tmp_path / "e" / "2_Dense" / "model.safetensors")
    assert resolve(spec, root=tmp_path).sha256 != alone
    (tmp_path / "e" / "2_Dense" / "model.safetensors").rename(tmp_path / "e" / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(ModelResolutionError, match=r"path:e has its weights only in pytorch_model\.bin"):
        resolve(spec, root=tmp_path)


def test_an_encoder_s_modules_lie_in_its_folder_and_are_the_library_s_own(folder: Path, tmp_path: Path) -> None:
    encoder(tmp_path / "e", ("../m", "sentence_transformers.models.Transformer"))
    with pytest.raises(ModelResolutionError, match=r"modules.json names '\.\./m', which is not in the folder"):
        resolve(ModelSpec(model="path:e", license="mit"), root=tmp_path)
    encoder(tmp_path / "own", ("", "own.Own"))
    (tmp_path / "own" / "own.py").write_text(f"from pathlib import Path\nPath({str(tmp_path / MARK)!r}).touch()\n")
    save_file({"weight": torch.ones(1)}, tmp_path / "own" / "model.safetensors")
    with pytest.raises(ModelResolutionError, match="needs code of its own, which is never run"):
        load_encoder(ModelSpec(model="path:own", license="mit"), "cpu", root=tmp_path)
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("name", ["num_hidden_layers", "hidden_size", "vocab_size"])
def test_a_model_that_is_said_to_be_larger_than_any_is_refused_before_memory_is_taken_for_it(tmp_path: Path, name: str) -> None:
    tiny.saved(tmp_path, tiny.llama(layers=1))
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {name: 10**9}))
    for load in (load_config, lambda folder: load_weights(folder, torch.float32)):
        with pytest.raises(ModelResolutionError, match=rf"config\.json: {name} is 1000000000; at most [\d,]+ are possible"):
            load(tmp_path)
