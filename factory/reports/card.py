"""The README.md of a published folder: a Hugging Face model card, written from its manifest and nothing else.

    (folder / "README.md").write_text(model_card(manifest), encoding="utf-8")

What a manifest does not say is left out, never guessed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from factory.evaluation.metrics import DASH, METRICS, Metric, bound_of, format_metric, format_number, is_detail, metric_named
from factory.registry.versions import as_metric, entries, read_metric, read_parameters, section
from factory.reports.console import identifiers_found

# Licence ids the Hub knows that the shipped and usual sources have; any other is written as `other` with its name.
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
PERMISSIVE = {
    "apache-2.0",
    "mit",
    "bsd",
    "bsd-2-clause",
    "bsd-3-clause",
    "isc",
    "zlib",
    "wtfpl",
    "unlicense",
    "cc0-1.0",
}
PERMISSIVE |= {"pddl", "public-domain"}


def model_card(manifest: Mapping[str, Any]) -> str:
    """``model_card(version.raw)`` → text of README.md, front matter first.

    Works on a manifest that publishing has not completed yet: name and kind are enough.
    """
    chapters = {
        "How to load it": _loading(manifest),
        "How close it is to its teacher": _figures(manifest),
        "Verdict": _verdict(manifest),
        "Samples": _samples(manifest),
        "Intended use": _intended(manifest),
        "Limits": _limits(manifest),
        "Where it comes from": _lineage(manifest),
        "Data and licences": _data(manifest),
        "Training": _training(manifest),
    }
    body = [f"# {_name(manifest)}", *_opening(manifest)]
    for title, paragraphs in chapters.items():
        if paragraphs:
            body += [f"## {title}", *paragraphs]
    return f"---\n{_front_matter(manifest)}---\n\n" + "\n\n".join(body) + "\n"


# ------------------------------------------------------------------------------------------------------ front matter


def _front_matter(manifest: Mapping[str, Any]) -> str:
    import yaml
    from huggingface_hub import EvalResult, ModelCardData

    is_base = manifest.get("kind") == "base"
    domain = manifest.get("domain")
    tags = [
        "student-factory",
        "knowledge-distillation",
        *([] if is_base else ["lora"]),
        *([str(domain)] if domain else []),
    ]
    license_id, license_name = _license(manifest)
    measured = {name: read_metric(manifest, name) for name in METRICS if METRICS[name].better}
    results = [
        EvalResult(
            task_type="text-generation",
            dataset_type="student-factory",
            dataset_name=f"held-out prompts, {domain or manifest.get('family') or 'general'}",
            metric_type=name,
            metric_name=METRICS[name].label,
            metric_value=metric["value"],
        )
        for name, metric in measured.items()
        if metric is not None
    ]
    data = ModelCardData(
        license=license_id,
        license_name=license_name,
        language=str(manifest.get("language") or "en"),
        library_name="transformers" if is_base else "peft",
        pipeline_tag="text-generation",
        base_model=_base_model(manifest),
        tags=tags,
        model_name=_name(manifest),
        eval_results=results or None,
    )
    return yaml.safe_dump(data.to_dict(), sort_keys=False, allow_unicode=True)  # type: ignore[no-untyped-call]


def _license(manifest: Mapping[str, Any]) -> tuple[str, str | None]:
    """Hub id, and a name where it is `other`: the teacher's, with every source's that asks for more than a notice."""
    teacher = section(manifest, "teacher").get("license")
    ids = [_license_id(teacher)] if teacher else []
    ids += [_license_id(source.get("license") or "unknown") for source in entries(manifest, "dataset", "sources")]
    binding = [name for position, name in enumerate(ids) if name not in PERMISSIVE or (teacher and position == 0)]
    names = list(dict.fromkeys(binding or ids)) or ["unknown"]
    if len(names) == 1 and names[0] in HUB_LICENSES:
        return names[0], None
    return "other", "-and-".join(names)


def _license_id(license: object) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", str(license).lower()).strip("-") or "unknown"


def _base_model(manifest: Mapping[str, Any]) -> str | None:
    """The Hub accepts only ids here: ``hub:org/name@rev`` has one, of a file its model's name is taken."""
    reference = str(section(manifest, "teacher").get("reference") or "")
    scheme, _, rest = reference.partition(":")
    if scheme == "hub":
        return rest.partition("@")[0] or None
    stem = re.sub(r"\.(gguf|safetensors)$", "", rest.rstrip("/").rpartition("/")[2])
    stem = re.sub(r"[.-](I?Q\d\w*|B?F(16|32))$", "", stem, flags=re.IGNORECASE)  # how it was quantised
    return re.sub(r"[^\w.-]+", "-", stem).strip("-.") or None


# ---------------------------------------------------------------------------------------------------------- chapters


def _opening(manifest: Mapping[str, Any]) -> list[str]:
    teacher = _teacher_name(manifest)
    own, of_teacher = read_parameters(manifest)
    size = f" It has {format_number(own, 'parameters')} parameters" if own else ""
    if own and of_teacher:
        size += f", {format_number(own / of_teacher, '%')} of its teacher's {format_number(of_teacher, 'parameters')}"
    if manifest.get("kind") == "base":
        what = f"A small language model cut from {teacher} and healed by distillation: the base of domain adapters."
    else:
        what = (
            f"A small language model for **{_text(manifest.get('domain') or 'one domain')}**: a LoRA adapter distilled "
            f"from {teacher}" + (f", to be used on the base `{manifest['base']}`." if manifest.get("base") else ".")
        )
    paragraphs = [what + (size + "." if size else "")]
    if manifest.get("notice"):
        paragraphs.append(f"> **{_text(manifest['notice'])}**")
    if manifest.get("profile") == "demo":
        paragraphs.append(
            "> **Built with the `demo` profile:** fewer prompts and training steps than the default, to show in "
            "minutes that everything works. It is weaker than a student of the default profile: do not judge the "
            "method, or rely on answers, by it."
        )
    verdict = section(manifest, "verdict")
    if verdict.get("status") == "failed":
        reasons = "; ".join(map(_text, verdict.get("reasons") or ())) or "no reason recorded"
        paragraphs.append(f"> **It failed its quality gates:** {reasons}")
    return paragraphs


def _loading(manifest: Mapping[str, Any]) -> list[str]:
    """Code that needs peft and transformers only; a test runs it."""
    samples = entries(manifest, "evaluation", "samples") or [{}]
    prompt = " ".join(str(samples[0].get("prompt") or "").split()) or "What should I know first?"
    name, _, number = str(manifest.get("base") or "").partition("@")
    own = f"{manifest.get('name')}/{manifest.get('version', 'N')}"
    if manifest.get("kind") == "base":
        start = f'base = "bases/{own}"  # this folder\n'
        imports, load = "", "model = AutoModelForCausalLM.from_pretrained(base)"
    else:
        start = f'base = "bases/{name or "NAME"}/{number or "N"}"  # the folder of the base, wherever it lies\n'
        start += f'adapter = "students/{own}"  # this folder\n'
        imports = "from peft import PeftModel\n"
        load = "model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)"
    code = f"""{imports}from transformers import AutoModelForCausalLM, AutoTokenizer

{start}
tokenizer = AutoTokenizer.from_pretrained(base)
{load}
messages = [{{"role": "user", "content": {prompt!r}}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=96, do_sample=False)
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))"""
    return ["With plain `transformers` and `peft`, offline:", f"```python\n{code}\n```"]


def _figures(manifest: Mapping[str, Any]) -> list[str]:
    evaluation = section(manifest, "evaluation")
    measured = section(evaluation, "metrics")
    further = [name for name in measured if name not in METRICS and not is_detail(name)]
    known = {**METRICS, **{name: metric_named(name) for name in further}}
    rows = []
    for name, metric in known.items():
        value = as_metric(measured.get(name))
        if value is not None:
            interval = format_metric(value, metric.unit).partition(" [")[2].rstrip("]") or DASH
            figure = format_number(value["value"], metric.unit)
            rows.append((metric.label, _better(metric), figure, interval, format_number(value["n"])))
    paragraphs = []
    if rows:
        paragraphs += [
            "Measured on held-out prompts that share no topic and no template with the training data. KL and agreement "
            "compare next-token distributions with the teacher's: they say how well the student imitates, not whether "
            "an answer is true.",
            _table(("figure", "better", "value", "interval", "n"), rows),
        ]
    baselines = {name: section(evaluation, "baselines", name) for name in section(evaluation, "baselines")}
    names = [name for name in METRICS if any(as_metric(b.get(name)) for b in baselines.values())]
    if names:
        lines = [(name, *(format_metric(as_metric(b.get(n)), METRICS[n].unit) for n in names)) for name, b in baselines.items()]
        lines.append(("**this model**", *(format_metric(as_metric(measured.get(n)), METRICS[n].unit) for n in names)))
        paragraphs += [
            "Against baselines on the same prompts:",
            _table(("", *(METRICS[n].label for n in names)), lines),
        ]
    return paragraphs + _size_and_speed(evaluation)


def _size_and_speed(evaluation: Mapping[str, Any]) -> list[str]:
    both = ("student", "teacher")
    merged = {who: section(evaluation, "sizes", who) | section(evaluation, "speed", who) for who in both}
    labels = {
        "parameters": ("parameters", "parameters"),
        "bytes": ("size on disk", "bytes"),
        "adapter_bytes": ("of which the adapter", "bytes"),
        "tokens_per_second": ("tokens per second", ""),
        "latency_ms": ("latency, ms", ""),
    }
    rows = [
        (label, *(format_number(merged[who].get(key), unit) for who in both))
        for key, (label, unit) in labels.items()
        if any(merged[who].get(key) is not None for who in both)
    ]
    return ["Size, and speed in the same run on the same machine:", _table(("", *both), rows)] if rows else []


def _verdict(manifest: Mapping[str, Any]) -> list[str]:
    """The gates of its family and domain, each with what it found."""
    gates = entries(manifest, "verdict", "gates")
    rows = [
        (
            metric_named(str(gate.get("metric"))).label,
            {"low": "lower end", "high": "upper end"}.get(str(gate.get("of")), "value"),
            format_number(gate.get("found")),
            f"{bound_of(gate)} {format_number(gate.get('threshold'))}",
            "passed" if gate.get("passed") else "**failed**",
        )
        for gate in gates
    ]
    status = section(manifest, "verdict").get("status")
    return [f"Its gates: {status}.", _table(("figure", "of which the", "found", "passes", ""), rows)] if rows else []


def _samples(manifest: Mapping[str, Any]) -> list[str]:
    samples = entries(manifest, "evaluation", "samples")[:3]
    if not samples:
        return []
    quoted = [
        "\n".join(f"> **{who}:** {_text(sample.get(who), 500)}  " for who in ("prompt", "teacher", "student"))
        for sample in samples
    ]
    return ["On held-out prompts, as they came, right or wrong:", *quoted]


def _intended(manifest: Mapping[str, Any]) -> list[str]:
    if manifest.get("kind") == "base":
        return ["As the frozen base under domain adapters. Alone it is a general model, weaker than its teacher."]
    domain = _text(manifest.get("domain") or "its domain")
    return [
        f"Short answers to everyday questions on {domain}, on small devices, as a draft that a person checks; and "
        "research on distillation. Not for decisions about a person, and not for questions outside its domain: nothing "
        "in the model itself stops it from answering those."
    ]


def _limits(manifest: Mapping[str, Any]) -> list[str]:
    points = [
        f"**Its teacher errs, and so does it.** The student imitates {_teacher_name(manifest)}, a small model that can "
        "state wrong facts fluently. Agreement with the teacher is not correctness: no figure here measures whether "
        "answers are true.",
        "**It is no professional advice.** For anything that matters to health, law, money or safety ask a "
        "professional; in an emergency call your local emergency number.",
        "The teacher's biases may have passed over to it, and pruning may have added to them.",
    ]
    points += [_text(warning) for warning in manifest.get("warnings") or ()]
    return ["\n".join(f"- {point}" for point in points)]


def _lineage(manifest: Mapping[str, Any]) -> list[str]:
    teacher, vocabulary = section(manifest, "teacher"), section(manifest, "vocabulary")
    libraries = ", ".join(f"{name} {version}" for name, version in section(manifest, "libraries").items())
    rows = [
        ("teacher", _code(teacher.get("reference"))),
        ("teacher's licence", _text(teacher.get("license"))),
        ("teacher's sha256", _code(teacher.get("sha256"))),
        ("base", _code(manifest.get("base"))),
        ("route", _code(" → ".join(map(str, manifest.get("route") or section(manifest, "cascade").get("route") or ())))),
        ("why that route", _text(section(manifest, "cascade").get("reason"))),
        ("layers kept", ", ".join(map(str, manifest.get("layers") or ()))),
        *((f"vocabulary, {key.replace('_', ' ')}", format_number(value)) for key, value in vocabulary.items()),
        ("router", _code(section(manifest, "router").get("version"))),
        ("profile", _code(manifest.get("profile"))),
        ("seed", str(manifest.get("seed", ""))),
        ("spec", _code(manifest.get("spec_hash"))),
        ("git commit", _code(manifest.get("git_commit"))),
        ("libraries", _text(libraries)),
        ("created", _text(manifest.get("created"))),
    ]
    kept = [row for row in rows if row[1]]
    note = "Everything is in `manifest.json` beside this file, with the sha256 of every file."
    if teacher.get("reference") and not str(teacher["reference"]).startswith("hub:"):
        note += " `base_model` above is the name of the teacher's file: before a push to the Hub, make it a Hub id."
    return [_table(("", ""), kept), note] if kept else []


def _data(manifest: Mapping[str, Any]) -> list[str]:
    data = section(manifest, "dataset")
    rows = [
        (_code(source.get("id")), _text(source.get("license") or "unknown"), format_number(source.get("n")))
        for source in entries(manifest, "dataset", "sources")
    ]
    counts = ", ".join(f"{count} {split}" for split, count in section(data, "counts").items())
    dropped = ", ".join(f"{_text(reason)} {count}" for reason, count in section(data, "dropped").items())
    paragraphs = [_table(("source", "licence", "examples"), rows)] if rows else []
    sentences = [
        f"Examples: {counts}." if counts else "",
        f"Dropped: {dropped}." if dropped else "",
        f"Personal identifiers: {_text(identifiers_found(data))}." if identifiers_found(data) else "",
        f"Refusals kept, as a class of their own: {data['refusals']}." if data.get("refusals") is not None else "",
        f"Fingerprint: `{data['fingerprint']}`." if data.get("fingerprint") else "",
    ]
    summary = " ".join(sentence for sentence in sentences if sentence)
    return paragraphs + ([summary] if summary else [])


def _training(manifest: Mapping[str, Any]) -> list[str]:
    training = section(manifest, "training")
    config = [(_code(key), _text(value)) for key, value in section(training, "config").items()]
    curve = entries(training, "curve")
    paragraphs = [
        "Three kinds of knowledge are matched: next-token distributions (generalized Jensen-Shannon divergence, GKD, "
        "[arXiv 2306.13649](https://arxiv.org/abs/2306.13649)), hidden states (FitNets, "
        "[arXiv 1412.6550](https://arxiv.org/abs/1412.6550)) and distances between embeddings (RKD, "
        "[arXiv 1904.05068](https://arxiv.org/abs/1904.05068)); each with the weight below, 0 means not used."
    ]
    if len(curve) > 1:
        changes = [
            f"{_text(name)} {format_number(curve[0][name])} → {format_number(curve[-1].get(name))}"
            for name in curve[0]
            if name != "step"
        ]
        paragraphs.append(f"From step {curve[0].get('step')} to {curve[-1].get('step')}: {', '.join(changes)}.")
    if training.get("examples"):
        paragraphs.append(f"It learnt from {format_number(training['examples'])} examples.")
    energy = section(manifest, "energy")
    stages = ", ".join(f"{_text(stage)} {format_number(wh)}" for stage, wh in section(energy, "stages_wh").items())
    answers = ", ".join(f"{_text(who)} {format_number(wh)}" for who, wh in section(energy, "per_1000_tokens_wh").items())
    if stages:
        per_answer = f" Of 1,000 generated tokens: {answers}." if answers else ""
        paragraphs.append(f"Energy in Wh, {_text(energy.get('method'))}: {stages}.{per_answer}")
    seconds = ", ".join(f"{_text(stage)} {format_number(value)}" for stage, value in section(manifest, "seconds").items())
    if seconds:
        paragraphs.append(f"Seconds taken: {seconds}.")
    return [*paragraphs, _table(("setting", "value"), config)] if config else (paragraphs[1:] if len(paragraphs) > 1 else [])


# ----------------------------------------------------------------------------------------------------------- writing


def _name(manifest: Mapping[str, Any]) -> str:
    return _text(manifest.get("name") or "student")


def _teacher_name(manifest: Mapping[str, Any]) -> str:
    return _text(_base_model(manifest) or "its teacher")


def _better(metric: Metric) -> str:
    return {"low": "lower", "high": "higher", None: DASH}[metric.better]


def _text(value: object, most: int = 1000) -> str:
    """One line that Markdown shows as it is: model output and YAML may hold anything."""
    words = " ".join(str(value if value is not None else "").split())
    words = words if len(words) <= most else words[:most].rstrip() + " …"
    return re.sub(r"([\\`*_\[\]|#])", r"\\\1", words.replace("&", "&amp;").replace("<", "&lt;"))


def _code(value: object) -> str:
    words = " ".join(str(value if value is not None else "").split()).replace("`", "'").replace("|", "\\|")
    return f"`{words}`" if words else ""


def _table(heading: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    heading = list(heading)
    lines = [heading, ["---"] * len(heading), *map(list, rows)]
    return "\n".join("| " + " | ".join(cell or " " for cell in line) + " |" for line in lines)
