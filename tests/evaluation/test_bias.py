"""Bias pairs: files are read strictly, metrics are those worked out by hand, and a student that was skewed is seen."""

from __future__ import annotations

import copy
import json
import math
import random
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny

from factory.errors import SpecError
from factory.evaluation.bias import Pair, bias_metrics, encode_pairs, load_pairs, measure_bias
from factory.evaluation.fidelity import fixed_model
from factory.evaluation.stats import BootstrapConfig
from factory.models.chat import start_token
from factory.models.forward import hidden_states, logits, make_batch

DOMAINS = Path(__file__).parents[2] / "domains"
SHIPPED = ["healthcare", "education", "legal"]
AXES = {"gender", "ethnicity", "age", "religion", "disability"}
A_BEFORE_A_VOWEL = re.compile(r"(?:uni|use|usual|eu|one\b)")  # "a university": it begins with a consonant's sound
AN_BEFORE_A_CONSONANT = re.compile(r"(?:hour|honest|honour|heir|[FHLMNRSX]\b|MRI|X-ray)")


def yaml_of(folder: Path, text: str, name: str = "mine.bias_pairs.yaml") -> list[Pair]:
    (folder / name).write_text(text, encoding="utf-8")
    return load_pairs([name], folder)


def jsonl_of(folder: Path, *rows: Any, name: str = "mine.bias_pairs.jsonl") -> list[Pair]:
    (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    return load_pairs([name], folder)


def scored(pair: Pair) -> str:
    return pair.stereotype[len(pair.stereotype) - pair.shared :] if pair.shared else pair.stereotype


# ---------------------------------------------------------------------------------------------------- shipped files


@pytest.fixture(scope="module", params=SHIPPED)
def shipped(request: pytest.FixtureRequest) -> list[Pair]:
    return load_pairs([f"evals/{request.param}.bias_pairs.yaml"], DOMAINS)


def test_a_shipped_file_has_150_distinct_pairs_and_ten_templates_for_each_axis(shipped: list[Pair]) -> None:
    distinct = Counter(axis for axis, _, _ in {(pair.axis, pair.stereotype, pair.other) for pair in shipped})
    assert set(distinct) == AXES and min(distinct.values()) >= 150, distinct
    assert sum(distinct.values()) == len(shipped)
    templates = Counter(axis for axis, _ in {(pair.axis, pair.cluster) for pair in shipped})
    assert min(templates.values()) >= 10


def test_shipped_sentences_differ_in_exactly_the_group_and_share_the_words_after_it(shipped: list[Pair]) -> None:
    for pair in shipped:
        first, second = pair.stereotype.split(), pair.other.split()
        ahead = next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
        behind = next(i for i, (a, b) in enumerate(zip(reversed(first), reversed(second), strict=False)) if a != b)
        groups = [words[ahead : len(words) - behind] for words in (first, second)]
        assert all(1 <= len(group) <= 3 for group in groups), pair
        assert not set(groups[0]) & set(groups[1]), pair
        assert ahead <= 3 and scored(pair).startswith(" ") and len(scored(pair).split()) >= 3, pair
        assert pair.other.endswith(scored(pair)), pair


def mistakes(sentence: str) -> list[str]:
    """What a filled template may have wrong."""
    found = re.findall(r"[{}|]|\s\s|^\s|\s[.,]|[^.]$|\b(\w+) \1\b", sentence)
    found += [one for one in re.findall(r"\b[Aa] ([aeiouAEIOU][\w-]*)", sentence) if not A_BEFORE_A_VOWEL.match(one)]
    found += [one for one in re.findall(r"\b[Aa]n ([^aeiouAEIOU\s][\w-]*)", sentence) if not AN_BEFORE_A_CONSONANT.match(one)]
    return found


def test_shipped_sentences_are_whole_and_their_articles_right(shipped: list[Pair]) -> None:
    assert {s: mistakes(s) for pair in shipped for s in (pair.stereotype, pair.other) if mistakes(s)} == {}


@pytest.mark.parametrize(
    "sentence",
    ["A {group} was late.", "A  man was late.", "A man was late", "A old man.", "An young man.", "It was was late.", "Late ."],
)
def test_the_check_of_shipped_sentences_finds_mistakes(sentence: str) -> None:
    assert mistakes(sentence)
    assert not mistakes("A young man was an hour late for a university suite and an old one.")


# ------------------------------------------------------------------------------------------------------------ files


def test_a_template_makes_a_pair_of_every_group_pair_and_alternative(tmp_path: Path) -> None:
    pairs = yaml_of(
        tmp_path,
        'axes: {age: [{groups: [[old man, boy], [crone, girl]], templates: ["{This|That} {group} is {slow | so  ill} now."]}]}',
    )
    assert [(pair.stereotype, pair.other) for pair in pairs[:3]] == [
        ("This old man is slow now.", "This boy is slow now."),
        ("This old man is so ill now.", "This boy is so ill now."),
        ("That old man is slow now.", "That boy is slow now."),
    ]
    assert len(pairs) == 8 and {scored(pair) for pair in pairs} == {" is slow now.", " is so ill now."}
    assert {pair.axis for pair in pairs} == {"age"} and len({pair.cluster for pair in pairs}) == 1


def test_files_are_read_in_order_and_equal_pairs_count_once(tmp_path: Path) -> None:
    row = {"stereotype": "She once was a nurse.", "other": "He once was a nurse."}
    (tmp_path / "more.jsonl").write_text(json.dumps(row | {"axis": "gender"}) + "\n")
    text = "axes: {gender: [{groups: [[She once, He once]], templates: ['{group} was a {nurse|cook}.']}]}"
    (tmp_path / "one.yaml").write_text(text)
    pairs = load_pairs(["one.yaml", "more.jsonl", str(tmp_path / "one.yaml")], tmp_path)
    assert [pair.stereotype for pair in pairs] == ["She once was a nurse.", "She once was a cook."]
    assert scored(pairs[0]) == " was a nurse."
    assert load_pairs([], tmp_path) == []


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ("The nurse said she was late.", "The nurse said he was late.", " was late."),
        ("She said that she was late.", "He said that he was late.", " was late."),  # after the last stretch that differs
        ("Black people are late.", "people are late.", " are late."),  # one word is left before it
        ("The man met the nurse.", "The man met the doctor.", "The man met the nurse."),  # nothing is shared: all of it
        ("He  was\nlate.", "She was late.", " was late."),
        ("Late.", "Soon.", "Late."),
    ],
)
def test_a_pair_from_jsonl_is_scored_after_what_differs(first: str, second: str, shared: str, tmp_path: Path) -> None:
    (pair,) = jsonl_of(tmp_path, {"stereotype": first, "other": second})
    assert scored(pair) == shared and pair.stereotype == " ".join(first.split())


def test_the_axis_of_a_line_defaults_to_the_file_name(tmp_path: Path) -> None:
    rows = [{"prompt": f"She is {i}.", "response": f"He is {i}.", "id": i} for i in (1, 2)]
    pairs = jsonl_of(tmp_path, rows[0], rows[1] | {"axis": "Gender Role"}, name="wino-bias.bias_pairs.jsonl")
    assert [pair.axis for pair in pairs] == ["wino_bias", "gender_role"]
    assert pairs[0].stereotype == "She is 1." and pairs[0].cluster != pairs[1].cluster


GOOD = '{"stereotype": "She is late.", "other": "He is late."}\n'


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.txt", "", "'.txt'"),
        ("a.jsonl", "", "no bias pairs"),
        ("a.jsonl", "\n\n", "no bias pairs"),
        ("a.jsonl", GOOD + "{", "a.jsonl:2: not valid JSON"),
        ("a.jsonl", GOOD + "\n[1]", "a.jsonl:3: must be an object {...}, not a list"),
        ("a.jsonl", GOOD + '{"stereotype": "She."}', "its keys: stereotype"),
        ("a.jsonl", GOOD + '{"stereotype": "She.", "a\\nb": ""}', r"its keys: stereotype, a\nb"),
        ("a.jsonl", '{"stereotype": "She.", "other": " "}', "a.jsonl:1: needs the texts"),
        ("a.jsonl", '{"stereotype": "She.", "other": 3}', "a.jsonl:1: needs the texts"),
        ("a.jsonl", '{"stereotype": "She is.", "other": "She  is."}', "a.jsonl:1: both sentences are 'She is.'"),
        ("a.jsonl", '{"stereotype": "She.", "other": "He.", "axis": 4}', "axis 4"),
        ("a.jsonl", '{"stereotype": "She.", "other": "He.", "axis": "!"}', "axis '!'"),
        ("a.yaml", "", "a.yaml:1: must be keys and values (found nothing)"),
        ("a.yaml", "axes: [", "a.yaml:1: not valid YAML"),
        ("a.yaml", "axes: {}\naxes: {}", "a.yaml:2: axes: this key is in line 1, too; remove one of them"),
        ("a.yaml", "axes:\n  age:\n    - groups: [[a, b]]\n", "a.yaml:3: axes.age.0.templates: Field required"),
        (
            "a.yaml",
            "axes: {age: [{groups: [[a, b]], templates: ['{group} is " + "{x|y}" * 10 + ".']}]}",
            "has more than 1000 variants",
        ),
        ("a.yaml", "axes: {}", "axes: "),
        ("a.yaml", "axes: {age: []}", "no bias pairs"),
        ("a.yaml", "axes: {Old-Age: []}", "Old-Age"),
        ("a.yaml", "axis: {}", "a.yaml:1: axes: Field required"),
        ("a.yaml", "axes: {age: [{groups: [[a, b]], templates: [], x: 1}]}", "age.0"),
        ("a.yaml", "axes: {age: [{groups: [[a, a ]], templates: ['{group} is.']}]}", "two different groups"),
        ("a.yaml", "axes: {age: [{groups: [[a, ' ']], templates: ['{group} is.']}]}", "two different groups"),
        ("a.yaml", "axes: {age: [{groups: [[a, b]], templates: ['The one is.']}]}", "needs {group} once"),
        ("a.yaml", "axes: {age: [{groups: [[a, b]], templates: ['{group} or {group} is.']}]}", "needs {group} once"),
        ("a.yaml", "axes: {age: [{groups: [[a, b]], templates: ['{group} is {.']}]}", "balanced braces"),
        ("a.yaml", "axes: {age: [{groups: [[a, b]], templates: ['It is {group}.']}]}", "needs words after {group}"),
        ("a.yaml", "axes: {age: [{groups: [[a, b]], templates: ['{group} is {ill}.']}]}", "{this|that}"),
        ("a.yaml", "axes: {age: [{groups: [[a, b]], templates: ['{group} is {ill|}.']}]}", "{this|that}"),
    ],
)
def test_a_malformed_file_gives_one_line_with_its_name(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(SpecError) as caught:
        load_pairs([name], tmp_path)
    assert said in str(caught.value) and str(tmp_path / name) in str(caught.value) and "\n" not in str(caught.value)


def test_a_missing_file_lists_those_that_exist(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(GOOD)
    with pytest.raises(SpecError, match=r"other\.jsonl: no such file of bias pairs; .* has mine\.jsonl$"):
        load_pairs(["other.jsonl"], tmp_path)
    with pytest.raises(SpecError, match="has none"):
        load_pairs(["nowhere/other.jsonl"], tmp_path)
    (tmp_path / "latin.jsonl").write_bytes(b"\xff\xfe\xe9")
    with pytest.raises(SpecError, match="cannot be read"):
        load_pairs(["latin.jsonl"], tmp_path)


# ------------------------------------------------------------------------------------------------------------- ids


def test_a_pair_is_two_examples_with_the_group_in_the_prompt(tmp_path: Path) -> None:
    tokenizer = tiny.tokenizer()
    pairs = jsonl_of(
        tmp_path,
        {"stereotype": "the old doctor may keep it", "other": "the landlord may keep it"},
        {"stereotype": "the doctor", "other": "the landlord"},
    )
    first, second, whole, other = encode_pairs(pairs, tokenizer)
    assert tokenizer.decode(first.completion) == tokenizer.decode(second.completion) == " may keep it"
    assert first.completion == second.completion
    assert tokenizer.decode(first.prompt[1:]) == "the old doctor" and tokenizer.decode(second.prompt[1:]) == "the landlord"
    assert first.teacher_prompt == first.prompt and first.prompt[0] == start_token(tokenizer)
    assert whole.prompt == other.prompt == [start_token(tokenizer)]
    assert [tokenizer.decode(one.completion) for one in (whole, other)] == ["the doctor", "the landlord"]
    assert encode_pairs([], tokenizer) == []


# ---------------------------------------------------------------------------------------------------------- metrics


def pairs_of(*kinds: tuple[str, str]) -> list[Pair]:
    return [Pair(axis, f"She is {i}.", f"He is {i}.", 0, cluster) for i, (axis, cluster) in enumerate(kinds)]


FOUR = pairs_of(("gender", "a"), ("gender", "b"), ("gender", "b"), ("age", "c"))
TEACHER = np.array([1.0, 2.0, 4.0, 1.0, 3.0, 3.0, 5.0, 1.0])  # other less stereotype: 1, -3, 0, -4
STUDENT = np.array([1.0, 3.0, 2.0, 2.5, 1.0, 2.0, 3.0, 5.0])  # 2, 0.5, 1, 2
HALF = np.array([1.0, 3.0, 2.0, 2.0, 1.0, 0.0, 3.0, 5.0])  # 2, 0, -1, 2


def test_metrics_by_axis_and_over_all_equal_values_worked_out_by_hand() -> None:
    metrics = bias_metrics(FOUR, {"teacher": TEACHER, "base": HALF, "student": STUDENT}, BootstrapConfig(200))
    assert {name: (metric.value, metric.n) for name, metric in metrics.items()} == {
        "bias_gender_gap_teacher": (pytest.approx(4 / 3), 3),
        "bias_gender_gap_base": (1.0, 3),
        "bias_gender_gap_student": (pytest.approx(3.5 / 3), 3),
        "bias_gender_gap_change": (pytest.approx(-0.5 / 3), 3),
        "bias_gender_preference_teacher": (0.5, 3),  # one, none, a tie
        "bias_gender_preference_base": (0.5, 3),
        "bias_gender_preference_student": (1.0, 3),
        "bias_gender_preference_change": (0.5, 3),
        "bias_age_gap_teacher": (4.0, 1),
        "bias_age_gap_base": (2.0, 1),
        "bias_age_gap_student": (2.0, 1),
        "bias_age_gap_change": (-2.0, 1),
        "bias_age_preference_teacher": (0.0, 1),
        "bias_age_preference_base": (1.0, 1),
        "bias_age_preference_student": (1.0, 1),
        "bias_age_preference_change": (1.0, 1),
        "bias_gap_teacher": (2.0, 4),
        "bias_gap_base": (1.25, 4),
        "bias_gap_student": (1.375, 4),
        "bias_gap_change": (-0.625, 4),
        "bias_preference_teacher": (0.375, 4),
        "bias_preference_base": (0.625, 4),
        "bias_preference_student": (1.0, 4),
        "bias_preference_change": (0.625, 4),
    }
    for name, metric in metrics.items():
        if "age" not in name:
            assert metric.low <= metric.value <= metric.high, name


def test_the_interval_resamples_templates_not_pairs() -> None:
    """Two templates of 50 equal pairs say no more than two pairs."""
    pairs = pairs_of(*[("age", "a")] * 50, *[("age", "b")] * 50)
    nll = np.array([0.0, 1.0] * 50 + [0.0, 3.0] * 50)
    metric = bias_metrics(pairs, {"teacher": nll}, BootstrapConfig(400))["bias_age_gap_teacher"]
    assert (metric.value, metric.low, metric.high, metric.n) == (2.0, 1.0, 3.0, 100)


@pytest.mark.parametrize("count", [1, 5])
def test_a_single_template_has_values_and_no_interval(count: int) -> None:
    metrics = bias_metrics(pairs_of(*[("age", "a")] * count), {"student": np.array([1.0, 3.0] * count)}, BootstrapConfig(100))
    gap = metrics["bias_age_gap_student"]
    assert (gap.value, gap.n) == (2.0, count) and math.isnan(gap.low) and math.isnan(gap.high)
    assert set(metrics) == {f"bias_{axis}{what}_student" for axis in ("", "age_") for what in ("gap", "preference")}


def test_without_pairs_there_are_no_metrics() -> None:
    assert bias_metrics([], {"teacher": np.array([])}, BootstrapConfig(100)) == {}
    assert measure_bias(tiny.teacher(), {}, [], tiny.tokenizer(), BootstrapConfig(100)) == {}


def test_nan_stays_within_its_axis() -> None:
    broken = STUDENT.copy()
    broken[6] = math.nan
    metrics = bias_metrics(FOUR, {"teacher": TEACHER, "student": broken}, BootstrapConfig(100))
    assert all(math.isnan(metrics[f"bias_{name}"].value) for name in ("age_preference_student", "gap_change"))
    assert metrics["bias_gender_gap_student"].value == pytest.approx(3.5 / 3)


def test_scores_must_match_the_pairs() -> None:
    with pytest.raises(ValueError, match="reshape"):
        bias_metrics(FOUR, {"teacher": TEACHER[:-2]}, BootstrapConfig(100))


@settings(max_examples=40)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30), st.integers(1, 5))
def test_swapping_the_sentences_of_every_pair_mirrors_preferences_and_keeps_gaps(
    scores: list[tuple[int, int]], templates: int
) -> None:
    pairs = pairs_of(*[("age", str(i % templates)) for i in range(len(scores))])
    nll = np.array(scores, dtype=float)
    here, there = (
        bias_metrics(pairs, {"teacher": nll[:, ::-1].ravel(), "student": v.ravel()}, BootstrapConfig(100, 1))
        for v in (nll, nll[:, ::-1])
    )
    assert here["bias_preference_student"].value == pytest.approx(1 - there["bias_preference_student"].value)
    assert here["bias_gap_student"].value == pytest.approx(there["bias_gap_student"].value)
    assert here["bias_gap_change"].value == 0 and there["bias_preference_change"].value == 0
    assert here["bias_preference_change"].value == pytest.approx(
        here["bias_preference_student"].value - here["bias_preference_teacher"].value
    )


# ---------------------------------------------------------------------------------------------------------- measured

FRAMES = [  # the girl's alternative, then the boy's
    "the %s may {learn|see} {light|sugar}",
    "the %s may {keep|answer} the {damage|light}",
    "the %s is {treated|brief} soon",
    "the %s signs for {asthma|light} and {home|sugar}",
    "a %s turns to the {doctor|landlord}",
    "the %s of that home is {short|early}",
    "what the %s may {answer|keep} is {rented|short}",
    "how is the %s {treated|rented} for {cough|damage}",
    "see that %s {learn|wheeze} soon",
    "that early %s is a {question|deposit}",
    "for a %s light is {sugar|breath}",
    "the %s and the students {wheeze|see}",
]


def pairs_both_ways(folder: Path) -> list[Pair]:
    """Two stereotypes a frame, one of girls and one of boys: who merely likes girls better prefers half of them."""
    blocks = []
    for frame in FRAMES:
        for chosen, groups in ((0, [["girl", "boy"], ["woman", "man"]]), (1, [["boy", "girl"], ["man", "woman"]])):
            sides = [part.split("|")[chosen if i % 2 else 0] for i, part in enumerate(re.split("{(.*?)}", frame))]
            blocks.append({"groups": groups, "templates": ["".join(sides).replace("%s", "{group}")]})
    return yaml_of(folder, json.dumps({"axes": {"gender": blocks}}))


def trained(model: Any, sentences: list[str], steps: int = 60) -> Any:
    """A copy that has read the sentences, eight a step."""
    model, tokenizer, rng = copy.deepcopy(model).train(), tiny.tokenizer(), random.Random(0)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = [tokenizer(sentence, add_special_tokens=False)["input_ids"] for sentence in sentences]
    for _ in range(steps):
        chosen = rng.choices(ids, k=8)
        batch = make_batch([[start_token(tokenizer)]] * 8, chosen)
        values = logits(model, hidden_states(model, batch).final[batch.predicts])
        loss = torch.nn.functional.cross_entropy(values, torch.tensor([token for one in chosen for token in one]))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return model.eval()


def test_a_student_trained_on_stereotypes_is_told_from_one_trained_on_both(tmp_path: Path) -> None:
    pairs, teacher = pairs_both_ways(tmp_path), tiny.teacher()
    stereotypes, others = [pair.stereotype for pair in pairs], [pair.other for pair in pairs]
    changes = {}
    for name, sentences in {"skewed": stereotypes, "balanced": stereotypes + others}.items():
        candidates = {"student": fixed_model(trained(teacher.model, sentences)), "base": fixed_model(tiny.llama(seed=5))}
        metrics = measure_bias(teacher, candidates, pairs, tiny.tokenizer(), BootstrapConfig(500))
        changes[name] = metrics["bias_gender_preference_change"]
    assert changes["skewed"].low > 0 and changes["skewed"].value > 0.25, changes
    assert changes["balanced"].low <= 0 <= changes["balanced"].high, changes


def test_the_words_after_the_group_are_scored() -> None:
    """Beside a plain pass of the teacher, which is given as student too: nothing changes."""
    teacher, tokenizer = tiny.teacher(), tiny.tokenizer()
    pairs = [Pair("age", "the doctor may see it", "the landlord may see it", len(" may see it"), "a")]
    metrics = measure_bias(teacher, {"student": fixed_model(teacher.model)}, pairs, tokenizer, BootstrapConfig(100))
    scores = []
    for sentence in (pairs[0].stereotype, pairs[0].other):
        before, rest = (tokenizer(part)["input_ids"] for part in (sentence[:-11], sentence[-11:]))
        with torch.inference_mode():
            values = teacher.model(input_ids=torch.tensor([[1, *before, *rest]])).logits[0].log_softmax(-1)
        scores.append(sum(float(values[len(before) + i, token]) for i, token in enumerate(rest)))
    assert metrics["bias_age_gap_teacher"].value == pytest.approx(abs(scores[0] - scores[1]), rel=1e-4)
    assert metrics["bias_age_preference_teacher"].value == float(scores[0] > scores[1])
    assert metrics["bias_age_preference_change"].value == 0
