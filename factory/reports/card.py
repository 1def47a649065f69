"""The README.md of a published folder: a Hugging Face model card, written from the manifest and nothing else.

(folder / "README.md").write_text(model_card(manifest), encoding="utf-8")
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from factory.evaluation.metrics import METRICS
from factory.reports.format import DASH, format_interval, format_metric, format_number
from factory.reports.view import SIZE_AND_SPEED, MetricRow, Row, View, view_of

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

    from factory.reports.view import AnyManifest

# The Hub's licence ids that the shipped and usual sources have; any other is written as `other`, with its name.
# https://huggingface.co/docs/hub/repositories-licenses
HUB_LICENSES = frozenset(
    """
    apache-2.0 mit bsd bsd-2-clause bsd-3-clause isc zlib wtfpl unlicense mpl-2.0 gpl-3.0 lgpl-3.0 agpl-3.0
    cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nd-4.0
    cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nc-nd-4.0
    odc-by odbl pddl cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0
    gemma llama2 llama3 llama3.1 llama3.2 llama3.3 openrail unknown
    """.split()  # noqa: SIM905 - forty quoted words are harder to read
)
# These ask for a notice at most, and the card's list of sources gives it.
PERMISSIVE = frozenset(
    "apache-2.0 mit bsd bsd-2-clause bsd-3-clause isc zlib wtfpl unlicense cc0-1.0 pddl public-domain".split()  # noqa: SIM905
)
BETTER = {"low": "lower", "high": "higher", None: DASH}


def model_card(manifest: AnyManifest) -> str:
    """``model_card(version.manifest)`` → the text of README.md, front matter first; also before it is published."""
    from huggingface_hub import ModelCard

    view = view_of(manifest)
    chapters = {
        "How to load it": _loading(manifest),
        "How close it is to its teacher": _metrics(manifest, view),
        "Verdict": _verdict(view),
        "Samples": _samples(view),
        "Intended use": _intended_use(view),
        "Limits": _limits(manifest, view),
        "Where it comes from": _lineage(manifest, view),
        "Data and licences": _data(view),
        "Training": _training(manifest, view),
    }
    body = [f"# {_text(manifest.name)}", *_opening(manifest, view)]
    for title, paragraphs in chapters.items():
        if paragraphs:
            body += [f"## {title}", *paragraphs]
    card = ModelCard(f"---\n{_front_matter(manifest, view).to_yaml()}\n---\n\n" + "\n\n".join(body) + "\n")
    return str(card)


# ------------------------------------------------------------------------------------------------------- front matter


def _front_matter(manifest: AnyManifest, view: View) -> ModelCardData:
    from huggingface_hub import EvalResult, ModelCardData

    is_base = manifest.kind == "base"
    license_id, license_name = _license(manifest)
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="student-factory",
            dataset_name=f"held-out prompts, {view.domain}",
            metric_type=row.key,
            metric_name=row.metric.label,
            metric_value=row.value.value,
        )
        for row in view.metrics
        if row.key in METRICS
        and row.metric.better
        and not isinstance(row.value, int | float)
        and math.isfinite(row.value.value)
    ]
    return ModelCardData(
        license=license_id,
        license_name=license_name,
        language=list(manifest.teacher.languages) or None,
        library_name="transformers" if is_base else "peft",
        pipeline_tag="text-generation",
        base_model=_base_model(manifest),
        tags=["student-factory", "knowledge-distillation", *([] if is_base else ["lora", view.domain])],
        model_name=manifest.name,
        eval_results=results or None,
    )


def _license(manifest: AnyManifest) -> tuple[str, str | None]:
    """Hub id, and a name where it is `other`: the teacher's licence, with those of sources that ask for more than a notice."""
    models = [manifest.teacher.license, *([manifest.base_model.license] if manifest.base_model else [])]
    sources = [_license_id(source.license) for source in manifest.dataset.sources]
    names = list(dict.fromkeys([*map(_license_id, models), *(name for name in sources if name not in PERMISSIVE)]))
    if len(names) == 1 and names[0] in HUB_LICENSES:
        return names[0], None
    return "other", "-and-".join(names)


def _license_id(license: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", license.lower()).strip("-") or "unknown"


def _base_model(manifest: AnyManifest) -> str:
    """What its weights come from."""
    return _hub_id((manifest.base_model or manifest.teacher).reference)


def _hub_id(reference: str) -> str:
    """The Hub accepts only ids: ``hub:org/name@rev`` has one, a file gives the name of its model."""
    scheme, _, rest = reference.partition(":")
    if scheme == "hub":
        return rest.partition("@")[0]
    stem = re.sub(r"\.(gguf|safetensors)$", "", rest.rstrip("/").rpartition("/")[2])
    stem = re.sub(r"[.-](I?Q\d\w*|B?F(16|32))$", "", stem, flags=re.IGNORECASE)  # how it was quantised
    return re.sub(r"[^\w.-]+", "-", stem).strip("-.")


# ----------------------------------------------------------------------------------------------------------- chapters


def _taught(manifest: AnyManifest) -> str:
    if manifest.teacher.api is not None:
        return f"for {_text(_base_model(manifest))}, trained on the answers of {_code(manifest.teacher.reference)}"
    return f"distilled from {_text(_hub_id(manifest.teacher.reference))}"


def _opening(manifest: AnyManifest, view: View) -> list[str]:
    teacher = _text(_base_model(manifest))
    if manifest.kind == "base":
        made = "as it is" if manifest.teacher.api else f"derived from {teacher} and healed by distillation"
        what = f"A small language model {made}: the base of domain adapters."
    else:
        what = (
            f"A small language model for **{_text(view.domain)}**: a LoRA adapter {_taught(manifest)}, "
            f"to be used on the base `{manifest.base}`."
        )
    paragraphs = [f"{what} It has {view.size}."]
    if view.notice:
        paragraphs.append(f"> **{_text(view.notice)}**")
    if view.profile == "demo":
        paragraphs.append(
            "> **Built with the `demo` profile:** fewer prompts and training steps than the default, to show within "
            "minutes that everything works. It is weaker than a student of the default profile: do not judge the method "
            "by it, and do not rely on its answers."
        )
    if view.verdict == "failed":
        paragraphs.append(f"> **It failed its quality gates:** {'; '.join(map(_text, view.reasons))}")
    return paragraphs


def _loading(manifest: AnyManifest) -> list[str]:
    """Code that needs only peft and transformers; a test runs it."""
    own = f"{manifest.name}/{manifest.version or 'N'}"
    prompt = "What should I know first?"
    if manifest.kind == "base":
        start = f'base = "bases/{own}"  # this folder\n'
        imports, load = "", "model = AutoModelForCausalLM.from_pretrained(base)"
    else:
        name, _, number = manifest.base.partition("@")
        start = f'base = "bases/{name}/{number or "N"}"  # the base\'s folder, wherever it is\n'
        start += f'adapter = "students/{own}"  # this folder\n'
        imports = "from peft import PeftModel\n"
        load = "model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)"
        prompt = " ".join(manifest.evaluation.samples[0].prompt.split()) if manifest.evaluation.samples else prompt
    code = f"""{imports}from transformers import AutoModelForCausalLM, AutoTokenizer

{start}
tokenizer = AutoTokenizer.from_pretrained(base)
{load}
messages = [{{"role": "user", "content": {prompt!r}}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=96, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""
    return ["With plain `transformers` and `peft`, offline:", f"```python\n{code}\n```"]


def _metrics(manifest: AnyManifest, view: View) -> list[str]:
    measured = [row for row in view.metrics if row.key not in SIZE_AND_SPEED]
    paragraphs = []
    if measured:
        paragraphs += [
            "Measured on held-out prompts that share no topic and no template with the training data. KL and agreement "
            "compare next-token distributions with the teacher's: they say how well the student imitates it, not whether "
            "an answer is true.",
            _table(("metric", "better", "value", "95 % interval", "n"), map(_metric_cells, measured)),
        ]
    if manifest.kind == "student" and manifest.evaluation.baselines:
        models = dict(manifest.evaluation.baselines) | {"**this model**": manifest.evaluation.metrics}
        names = [name for name in METRICS if any(name in metrics for metrics in manifest.evaluation.baselines.values())]
        rows = [(who, *(format_metric(of.get(name), METRICS[name].unit) for name in names)) for who, of in models.items()]
        labels = [METRICS[name].label for name in names]
        paragraphs += ["Baselines on the same prompts:", _table(("", *labels), rows)]
    return paragraphs + _size_and_speed(view)


def _metric_cells(row: MetricRow) -> tuple[str, ...]:
    assert not isinstance(row.value, int | float)
    value, interval = format_number(row.value.value, row.metric.unit), format_interval(row.value, row.metric.unit)
    return row.metric.label, BETTER[row.metric.better], value, interval or DASH, f"{row.value.n:,}"


def _size_and_speed(view: View) -> list[str]:
    rows = [
        (row.metric.label, format_metric(row.value, row.metric.unit), format_metric(row.teacher, row.metric.unit))
        for row in view.metrics
        if row.key in SIZE_AND_SPEED
    ]
    return ["Size, and speed of both in one run on one machine:", _table(("", view.kind, "teacher"), rows)]


def _verdict(view: View) -> list[str]:
    """The gates of its family and domain, each with what it found."""
    rows = [(_text(gate.words), gate.status if gate.status == "passed" else f"**{gate.status}**") for gate in view.gates]
    return [f"Its gates: {view.verdict}.", _table(("gate", ""), rows)] if rows else []


def _samples(view: View) -> list[str]:
    quoted = [
        "\n".join(f"> **{who}:** {_text(getattr(sample, who), 500)}  " for who in ("prompt", "teacher", "student"))
        for sample in view.samples[:3]
    ]
    return ["On held-out prompts, unedited, right or wrong:", *quoted] if quoted else []


def _intended_use(view: View) -> list[str]:
    if view.kind == "base":
        return ["As the frozen base of domain adapters. By itself it is a general model, weaker than its teacher."]
    return [
        f"Short answers to everyday questions on {_text(view.domain)}, on small devices, as a draft that a person checks; "
        "and research on distillation. Not for decisions about a person, and not for questions outside its domain: nothing "
        "in the model stops it from answering those."
    ]


def _imitated(manifest: AnyManifest) -> str:
    if manifest.teacher.api is not None:
        return f"{_code(manifest.teacher.reference)}, a model"
    return f"{_text(_hub_id(manifest.teacher.reference))}, a small model"


def _limits(manifest: AnyManifest, view: View) -> list[str]:
    points = [
        f"**Its teacher makes mistakes, and so does it.** The student imitates {_imitated(manifest)} "
        "that can state wrong facts fluently. Agreement with the teacher is not correctness.",
        "**It gives no professional advice.** For anything that matters to health, law, money or safety ask a "
        "professional; in an emergency call your local emergency number.",
        "The teacher's biases may have been passed on, and pruning may have added to them.",
        *map(_text, view.warnings),
    ]
    return ["\n".join(f"- {point}" for point in points)]


def _lineage(manifest: AnyManifest, view: View) -> list[str]:
    note = "`manifest.json` beside this file has all of it, with the sha256 of every file."
    if not (manifest.base_model or manifest.teacher).reference.startswith("hub:"):
        whose = "a file" if manifest.base_model else "the teacher's file"
        note += f" `base_model` above is the name of {whose}: replace it with a Hub id before a push to the Hub."
    return [_rows(view.lineage), note]


def _data(view: View) -> list[str]:
    sources = [(_code(source.id), _text(source.license), f"{source.n:,}") for source in view.sources]
    return [_table(("source", "licence", "examples"), sources), _rows(view.data)]


def _training(manifest: AnyManifest, view: View) -> list[str]:
    knowledge = (
        "Three kinds of knowledge are matched: next-token distributions (generalized Jensen-Shannon divergence, GKD, "
        "[arXiv 2306.13649](https://arxiv.org/abs/2306.13649)), hidden states (FitNets, "
        "[arXiv 1412.6550](https://arxiv.org/abs/1412.6550)) and distances between embeddings (RKD, "
        "[arXiv 1904.05068](https://arxiv.org/abs/1904.05068)), each with the weight below; 0 means not used."
    )
    if manifest.teacher.api is not None:
        knowledge = "It learns the texts that its teacher wrote, by cross-entropy."
        if manifest.kind == "student" and manifest.soft_targets is not None:
            knowledge = "It learns how likely the tokens were that an API named, at most 20 a place; all others count as one."
    curves = [
        Row(f"{one.name}, step {one.steps[0]:g} to {one.steps[-1]:g}", f"{format_number(one.values[0])} → {last}")
        for one in view.curves
        if len(one.values) > 1 and (last := format_number(one.values[-1]))
    ]
    paragraphs = [
        knowledge,
        _rows([*view.healing, *view.training, *curves]),
        _table(("setting", "value"), _cells(view.settings)),
    ]
    return [*paragraphs, "Energy, an estimate:", _rows(view.energy)] if view.energy else paragraphs


# ------------------------------------------------------------------------------------------------------------ Markdown


def _text(value: str, limit: int = 1000) -> str:
    """One line that Markdown shows literally: model output and YAML may contain anything."""
    words = " ".join(value.split())
    words = words if len(words) <= limit else words[:limit].rstrip() + " …"
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", words.replace("&", "&amp;").replace("<", "&lt;"))


def _code(value: str) -> str:
    words = " ".join(value.split()).replace("`", "'").replace("|", "\\|")
    return f"`{words}`" if words else ""


def _rows(rows: Iterable[Row]) -> str:
    return _table(("", ""), ((_text(row.label), _code(row.value) if row.code else _text(row.value)) for row in rows))


def _cells(settings: Iterable[Row]) -> Iterable[tuple[str, str]]:
    return ((_code(row.label), _text(row.value)) for row in settings)


def _table(heading: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heading = list(heading)
    lines = [heading, ["---"] * len(heading), *map(list, rows)]
    return "\n".join("| " + " | ".join(cell or " " for cell in line) + " |" for line in lines)
