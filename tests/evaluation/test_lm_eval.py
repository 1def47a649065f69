"""Harness tasks: shipped questions are valid, likelihoods equal a plain loop, scores equal those worked out by hand."""

from __future__ import annotations

import json
import logging
import math
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import pytest
import torch
import yaml
from support import tiny
from torch import nn

import factory.evaluation.lm_eval as module
from factory.config.schema import DistillConfig
from factory.errors import DataError
from factory.evaluation.fidelity import base_only, fixed_model, with_adapter
from factory.evaluation.lm_eval import (
    HarnessModel,
    TaskResult,
    cut,
    load_tasks,
    log_likelihoods,
    pair_ids,
    run_tasks,
    task_metrics,
)
from factory.evaluation.stats import BootstrapConfig
from factory.models.attention import GROUPED
from factory.models.base import attach_adapter
from factory.models.generation import sample

DOMAINS = Path(__file__).parents[2] / "domains"
SHIPPED = ["healthcare", "education", "legal"]
TOKENIZER = tiny.tokenizer()
ITEMS = [  # choices of different lengths, whose order by likelihood and by likelihood a character differs
    {"question": "what is asthma", "choices": ["a cough and short breath", "a home", "light"], "answer": 0},
    {"question": "what may a landlord keep", "choices": ["the deposit", "a wheeze"], "answer": 0},
    {"question": "how do students learn", "choices": ["of sugar", "that light turns into sugar"], "answer": 1},
    {"question": "what is it", "choices": ["brief", "a doctor", "the home of the doctor", "sugar"], "answer": 1},
    {"question": "see a doctor soon for", "choices": ["a cough", "signs of damage to the rented home"], "answer": 0},
    {"question": "what turns into sugar", "choices": ["light", "the landlord and the students"], "answer": 1},
]
CHANCE = (1 / 3 + 1 / 2 + 1 / 2 + 1 / 4 + 1 / 2 + 1 / 2) / 6


@pytest.fixture(autouse=True)
def no_cache_but_here(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


def peft_model(dtype: torch.dtype = torch.float32) -> Any:
    """An adapter that says something, in float32, on a base of this type; rotary frequencies stay float32."""
    base = tiny.base()
    for parameter in base.model.parameters():
        parameter.data = parameter.data.to(dtype)
    model = attach_adapter(base, DistillConfig(steps=1, learning_rate=1e-3, rank=4, alpha=8))
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model.eval()


def task_file(root: Path, items: list[dict[str, Any]] | None = None, name: str = "mine", **changes: Any) -> str:
    """A task like the shipped ones under ``root/evals``, with these items."""
    (root / "evals").mkdir(exist_ok=True)
    rows = "".join(json.dumps(item) + "\n" for item in (ITEMS if items is None else items))
    (root / "evals" / f"{name}.task.jsonl").write_text(rows)
    config = yaml.safe_load((DOMAINS / "evals" / "legal.task.yaml").read_text())
    config |= {"task": name, "dataset_kwargs": {"data_files": {"test": f"{name}.task.jsonl"}}} | changes
    (root / "evals" / f"{name}.task.yaml").write_text(yaml.safe_dump({k: v for k, v in config.items() if v is not None}))
    return f"evals/{name}.task.yaml"


def requests(*arguments: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=one) for one in arguments]


def random_pairs(count: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """Of very different lengths, in no order."""
    rng = random.Random(seed)
    ids = partial(rng.choices, range(3, 360))
    return [(ids(k=rng.randrange(1, 40)), ids(k=rng.randrange(1, 9))) for _ in range(count)]


@torch.inference_mode()
def plain(model: Any, context: list[int], continuation: list[int]) -> float:
    """One row without padding, one position after the other."""
    values = model(input_ids=torch.tensor([[*context, *continuation]])).logits[0].double().log_softmax(-1)
    return sum(float(values[len(context) - 1 + offset, token]) for offset, token in enumerate(continuation))


# shipped files


@pytest.mark.parametrize("domain", SHIPPED)
def test_a_shipped_task_has_200_questions_with_four_choices(domain: str) -> None:
    lines = (DOMAINS / "evals" / f"{domain}.task.jsonl").read_text(encoding="ascii").splitlines()
    items = [json.loads(line) for line in lines]
    assert len(items) >= 200
    for item in items:
        assert set(item) == {"question", "choices", "answer"}
        assert len({choice.casefold() for choice in item["choices"]}) == 4, item
        assert all(choice == choice.strip() != "" and not choice.endswith(".") for choice in item["choices"])
        assert item["answer"] in range(4)
        assert item["question"].endswith("?")
        assert not any(choice.lower().startswith(("all of the", "none of the", "both of the")) for choice in item["choices"])
        right = len(item["choices"][item["answer"]])
        others = [len(choice) for n, choice in enumerate(item["choices"]) if n != item["answer"]]
        assert 0.4 <= right / (sum(others) / 3) <= 2.1, item  # its length gives no answer away
    assert len({item["question"].casefold() for item in items}) == len(items)
    assert max(Counter(item["answer"] for item in items).values()) <= 0.27 * len(items)
    longest = sum(np.argmax([len(c) for c in item["choices"]]) == item["answer"] for item in items)
    assert longest / len(items) < 0.4  # a guess by length is hardly better than any


def test_domains_share_no_question() -> None:
    questions = [
        json.loads(line)["question"]
        for d in SHIPPED
        for line in (DOMAINS / "evals" / f"{d}.task.jsonl").read_text().splitlines()
    ]
    assert len(set(questions)) == len(questions)


def test_the_harness_reads_shipped_tasks_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = load_tasks([f"evals/{domain}.task.yaml" for domain in SHIPPED], DOMAINS)
    assert list(loaded) == [f"factory_{domain}" for domain in SHIPPED]
    for domain, task in zip(SHIPPED, loaded.values(), strict=True):
        lines = (DOMAINS / "evals" / f"{domain}.task.jsonl").read_text().splitlines()
        first = json.loads(lines[0])
        task.set_fewshot_seed(0)
        task.build_all_requests(limit=1)
        context = f"Question: {first['question']}\nAnswer:"
        assert [instance.args for instance in task.instances] == [(context, f" {choice}") for choice in first["choices"]]
        assert task.doc_to_target(task.eval_docs[0]) == first["answer"]
        assert (len(task.eval_docs), task.VERSION) == (len(lines), 2.0)
        assert set(task.aggregation()) == {"acc", "acc_norm"}


# likelihoods


@pytest.mark.parametrize("attention", [None, GROUPED])
@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma, peft_model])
def test_likelihoods_equal_a_plain_loop(make: Callable[[], Any], attention: str | None) -> None:
    model = make()
    if attention is not None:
        module.unwrap(model).set_attn_implementation(attention)
    pairs = random_pairs(37)
    found = log_likelihoods(model, pairs)
    np.testing.assert_allclose([value for value, _ in found], [plain(model, *pair) for pair in pairs], atol=2e-4)


def test_bfloat16_likelihoods_differ_from_a_plain_loop_by_rounding() -> None:
    model, pairs = peft_model(torch.bfloat16), random_pairs(37)
    found = np.array([value for value, _ in log_likelihoods(model, pairs)])
    expected = np.array([plain(model, *pair) for pair in pairs])
    tokens = np.array([len(continuation) for _, continuation in pairs])
    assert np.abs((found - expected) / tokens).max() < 0.05
    assert np.corrcoef(found / tokens, expected / tokens)[0, 1] > 0.999


def test_batches_do_not_change_likelihoods(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pairs = tiny.llama(), random_pairs(40)
    expected = log_likelihoods(model, pairs)
    monkeypatch.setattr(module, "TOKENS", 90)  # one or two rows at once
    found = log_likelihoods(model, pairs)
    np.testing.assert_allclose([v for v, _ in found], [v for v, _ in expected], atol=2e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]


def test_only_greedy_continuations_are_marked_greedy() -> None:
    model, prompt = tiny.llama(), [5, 9, 20]
    (ids,) = sample(model, [prompt], max_new_tokens=4, stop=[])
    assert log_likelihoods(model, [(prompt, ids)])[0][1] is True
    assert log_likelihoods(model, [(prompt, [*ids[:-1], (ids[-1] + 1) % 360])])[0][1] is False
    assert log_likelihoods(model, [(prompt, [(ids[0] + 1) % 360, *ids[1:]])])[0][1] is False


def test_a_long_context_is_cut_on_the_left(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.llama()
    monkeypatch.setattr(module, "LONGEST", 12)
    context, continuation = list(range(10, 40)), [50, 51, 52]
    assert log_likelihoods(model, [(context, continuation)])[0][0] == pytest.approx(
        plain(model, context[-9:], continuation), abs=1e-4
    )
    with pytest.raises(DataError, match=r"an answer of 12 tokens; only answers of 1 to 11 tokens"):
        log_likelihoods(model, [(context, list(range(12)))])


def test_the_models_positions_limit_the_input() -> None:
    model = tiny.llama()
    assert module.longest_input(model) == 512  # as tiny.llama's configuration says
    del model.config.max_position_embeddings
    assert module.longest_input(model) == module.LONGEST


def test_an_empty_list_has_no_likelihoods() -> None:
    assert log_likelihoods(tiny.llama(), []) == []
    with pytest.raises(DataError, match="an answer of 0 tokens"):
        log_likelihoods(tiny.llama(), [([1], [])])


@pytest.mark.parametrize(
    ("context", "continuation"), [("what is it", " sugar"), ("what is it ", "sugar"), ("", "sugar"), (" ", "sugar")]
)
def test_context_and_continuation_are_tokenized_as_one_text(context: str, continuation: str) -> None:
    begun, rest = pair_ids(TOKENIZER, context, continuation)
    said = begun if context.strip() else []
    assert TOKENIZER.decode([*said, *rest]) == context + continuation
    assert TOKENIZER.decode(rest).strip() == "sugar"
    assert begun == (TOKENIZER("what is it")["input_ids"] if context.strip() else [TOKENIZER.bos_token_id])


@pytest.mark.parametrize("make", [tiny.llama, tiny.gemma])
@pytest.mark.filterwarnings("ignore")
def test_hflm_gives_the_same_results_in_float32(make: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> None:
    from lm_eval.models.huggingface import HFLM

    model = make()
    contexts, continuations = tiny.sentences(30), tiny.sentences(30, seed=9)
    asked = requests(*zip(["", *contexts[1:]], [f" {text}" for text in continuations], strict=True))
    texts = requests(*((" ".join(contexts[:n]),) for n in (1, 4, 9)))
    theirs = HFLM(pretrained=model, tokenizer=tiny.tokenizer(), batch_size=7)
    expected = theirs.loglikelihood(asked, disable_tqdm=True)
    ours = HarnessModel(model, TOKENIZER)
    found = ours.loglikelihood(asked)
    np.testing.assert_allclose([v for v, _ in found], [v for v, _ in expected], atol=2e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in expected]
    np.testing.assert_allclose(ours.loglikelihood_rolling(texts), theirs.loglikelihood_rolling(texts, True), rtol=1e-5)
    settings = {"until": [" "], "max_gen_toks": 6, "do_sample": False}
    prompts = requests(*((text, settings) for text in contexts[:9]))
    assert ours.generate_until(prompts) == theirs.generate_until(prompts, True)
    capsys.readouterr()


@pytest.mark.filterwarnings("ignore")
def test_hflm_makes_ties_of_bfloat16_logits_that_differ_here(capsys: pytest.CaptureFixture[str]) -> None:
    from lm_eval.models.huggingface import HFLM

    model = tiny.llama().to(torch.bfloat16)
    pairs = [([30, 31, 32], [token]) for token in range(3, 203)]
    theirs = HFLM(pretrained=model, tokenizer=tiny.tokenizer(), batch_size=16, softmax_dtype="float32")
    rounded = theirs._loglikelihood_tokens([(("", str(pair)), *pair) for pair in pairs], disable_tqdm=True)
    assert len({value for value, _ in rounded}) < len({value for value, _ in log_likelihoods(model, pairs)})
    capsys.readouterr()


@pytest.mark.parametrize("longest", [5, 16, 512])
def test_windows_predict_every_token_of_a_long_text_once(longest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LONGEST", longest)
    model = tiny.llama()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()  # every token is as likely: -log 360
    texts = [" ".join(tiny.sentences(8)), "", "sugar"]
    tokens = [len(TOKENIZER(text)["input_ids"]) for text in texts]
    assert tokens[0] > 32
    found = HarnessModel(model, TOKENIZER).loglikelihood_rolling(requests(*((text,) for text in texts)))
    np.testing.assert_allclose(found, [-count * math.log(360) for count in tokens], rtol=1e-5)


def test_a_text_in_one_window_follows_a_start_token() -> None:
    model, text = tiny.llama(), "light turns into sugar"
    (found,) = HarnessModel(model, TOKENIZER).loglikelihood_rolling(requests((text,)))
    assert found == pytest.approx(plain(model, [TOKENIZER.bos_token_id], TOKENIZER(text)["input_ids"]), abs=1e-4)


# writing


def test_answers_end_at_a_stop_string_in_the_order_of_the_requests() -> None:
    model, texts = tiny.llama(), tiny.sentences(6)
    whole = [
        TOKENIZER.decode(sample(model, [TOKENIZER(text)["input_ids"]], max_new_tokens=n, stop=[2])[0], skip_special_tokens=True)
        for text, n in zip(texts, (8, 3, 8, 3, 8, 8), strict=True)
    ]
    stop = whole[0][2]
    settings = [
        {"max_gen_toks": n, "until": u} for n, u in ((8, [stop]), (3, []), (8, stop), (3, None), (8, []), (8, ["", "\0"]))
    ]
    found = HarnessModel(model, TOKENIZER).generate_until(requests(*zip(texts, settings, strict=True)))
    assert found == [whole[0].split(stop)[0], whole[1], whole[2].split(stop)[0], *whole[3:]]
    assert found[0] != whole[0]


def test_a_task_s_temperature_is_used_only_where_it_samples() -> None:
    model = HarnessModel(tiny.llama(), TOKENIZER)
    greedy, cold, sampled = model.generate_until(
        requests(
            ("what", {"max_gen_toks": 12}),
            ("what", {"max_gen_toks": 12, "temperature": 3.0, "do_sample": False}),
            ("what", {"max_gen_toks": 12, "temperature": 3.0, "do_sample": True}),
        )
    )
    assert greedy == cold != sampled


@pytest.mark.parametrize(
    ("until", "expected"),
    [(["b"], "a"), ("b", "a"), ([], "abcb"), (["x"], "abcb"), (["c", "b"], "a"), (["a"], ""), ([""], "abcb")],
)
def test_text_is_cut_at_the_first_stop_string(until: str | list[str], expected: str) -> None:
    assert cut("abcb", until) == expected


# whole tasks


def by_hand(model: Any, items: list[dict[str, Any]]) -> list[float]:
    """acc_norm of each item, one choice after the other."""
    scores = []
    for item in items:
        context = TOKENIZER(f"Question: {item['question']}\nAnswer:")["input_ids"]
        likely = [plain(model, context, TOKENIZER(f" {choice}")["input_ids"]) / len(choice) for choice in item["choices"]]
        scores.append(float(max(range(len(likely)), key=likely.__getitem__) == item["answer"]))
    return scores


def test_scores_equal_those_worked_out_by_hand(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    task, models = task_file(tmp_path), {"student": tiny.llama(seed=3), "teacher": tiny.llama(), "base": tiny.llama(seed=5)}
    (result,) = run_tasks({who: fixed_model(m) for who, m in models.items()}, TOKENIZER, [task], root=tmp_path)
    assert (result.name, result.metric) == ("mine", "acc_norm")
    assert result.chance == pytest.approx(CHANCE)
    assert {who: scores.tolist() for who, scores in result.scores.items()} == {
        who: by_hand(model, ITEMS) for who, model in models.items()
    }
    assert 0 < np.mean(list(result.scores.values())) < 1
    assert capfd.readouterr() == ("", "")
    assert [record for record in caplog.records if record.name.startswith("lm_eval")] == []
    assert logging.getLogger("lm_eval").level == logging.NOTSET  # as it was


def test_a_candidate_scores_the_same_alone(tmp_path: Path) -> None:
    task, adapter = task_file(tmp_path), peft_model(torch.bfloat16)
    both = {"student": with_adapter(adapter, "default"), "base": base_only(adapter)}
    (together,) = run_tasks(both, TOKENIZER, [task], root=tmp_path)
    (alone,) = run_tasks({"student": both["student"]}, TOKENIZER, [task], root=tmp_path)
    np.testing.assert_array_equal(together.scores["student"], alone.scores["student"])
    assert together.scores["student"].tolist() != together.scores["base"].tolist()


def test_a_limit_keeps_the_first_items(tmp_path: Path) -> None:
    model, tasks = tiny.llama(), [task_file(tmp_path), task_file(tmp_path, ITEMS[:1], "single")]
    first, single = run_tasks({"student": fixed_model(model)}, TOKENIZER, tasks, root=tmp_path, limit=3)
    assert first.scores["student"].tolist() == by_hand(model, ITEMS[:3])
    assert single.scores["student"].tolist() == by_hand(model, ITEMS[:1])
    assert single.chance == pytest.approx(1 / 3)


def test_without_tasks_or_candidates_there_are_no_results(tmp_path: Path) -> None:
    assert run_tasks({"student": fixed_model(tiny.llama())}, TOKENIZER, [], root=tmp_path) == []
    assert run_tasks({}, TOKENIZER, ["evals/none.yaml"], root=tmp_path) == []


def test_every_candidate_sees_the_same_few_shot_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts: list[list[str]] = []
    original = HarnessModel.loglikelihood

    def recorded(self: HarnessModel, asked: Any) -> Any:
        contexts.append([one.args[0] for one in asked])
        return original(self, asked)

    monkeypatch.setattr(HarnessModel, "loglikelihood", recorded)
    model = fixed_model(tiny.llama())
    run_tasks(
        {"student": model, "teacher": model},
        TOKENIZER,
        [task_file(tmp_path, num_fewshot=2, fewshot_split="test")],
        root=tmp_path,
    )
    assert contexts[0] == contexts[1]
    assert all(context.count("Question:") == 3 for context in contexts[0])
    assert len({context.partition("Answer:")[0] for context in contexts[0]}) > 1  # drawn for each item


def test_a_generated_answer_is_scored_by_the_first_metric(tmp_path: Path) -> None:
    model = tiny.llama()
    settings = {"until": ["\n\n"], "max_gen_toks": 3, "do_sample": False}
    (text,) = HarnessModel(model, TOKENIZER).generate_until(requests(("what", settings)))
    changes = {
        "output_type": "generate_until",
        "doc_to_text": "{{question}}",
        "doc_to_choice": None,
        "doc_to_target": "{{choices[0]}}",
        "generation_kwargs": settings,
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "filter_list": [  # two ways of marking; nothing passes the second
            {"name": "as it is", "filter": [{"function": "take_first"}]},
            {"name": "number", "filter": [{"function": "regex", "regex_pattern": "([0-9]{9})"}, {"function": "take_first"}]},
        ],
    }
    items = [{"question": "what", "choices": [answer], "answer": 0} for answer in (text, f"not {text}")]
    (result,) = run_tasks({"student": fixed_model(model)}, TOKENIZER, [task_file(tmp_path, items, **changes)], root=tmp_path)
    assert (result.metric, result.chance, result.scores["student"].tolist()) == ("exact_match", None, [1.0, 0.0])


def test_a_task_that_the_harness_ships_is_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task_file(tmp_path)
    index_of(tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path / "evals")  # this file names its data by a path from the current folder
    (result,) = run_tasks({"student": fixed_model(tiny.llama())}, TOKENIZER, ["mine"], root=tmp_path / "elsewhere")
    assert result.scores["student"].tolist() == by_hand(tiny.llama(), ITEMS)


# refusals


def index_of(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names that the harness knows are those of this folder: its own index takes ten seconds to read."""
    import lm_eval.tasks

    manager = lm_eval.tasks.TaskManager

    def small(*, include_defaults: bool) -> Any:
        assert include_defaults
        return manager(include_path=folder, include_defaults=False)

    monkeypatch.setattr(lm_eval.tasks, "TaskManager", small)


def refused(tasks: list[str], root: Path) -> str:
    with pytest.raises(DataError) as caught:
        run_tasks({"student": fixed_model(tiny.llama())}, TOKENIZER, tasks, root=root)
    message = str(caught.value)
    assert "\n" not in message and "Traceback" not in message
    return message


def test_a_missing_file_lists_those_that_exist(tmp_path: Path) -> None:
    task_file(tmp_path)
    assert refused(["evals/none.yaml"], tmp_path).endswith(f"none.yaml; {tmp_path} has: evals/mine.task.yaml")
    assert refused(["other.yml"], tmp_path / "evals").endswith("has: mine.task.yaml")


def test_an_unknown_name_suggests_close_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task_file(tmp_path)
    index_of(tmp_path, monkeypatch)
    assert "unknown task 'minee'; close: mine; or name the .yaml file" in refused(["minee"], tmp_path)
    assert "unknown task 'quite_other'; `lm-eval ls tasks` prints" in refused(["quite_other"], tmp_path)


def test_an_error_says_where_data_needs_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task_file(tmp_path, dataset_path="someone/something", dataset_kwargs=None)
    index_of(tmp_path, monkeypatch)

    def unreachable(**_: Any) -> Any:
        raise ConnectionError("Couldn't reach\nthe Hub")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    message = refused(["mine"], tmp_path)
    assert message.startswith(
        "task 'mine' cannot be loaded (its data comes from the Hugging Face hub: run it once with a network): "
    )
    assert message.endswith("Couldn't reach the Hub")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("task: [", "mine.yaml:1: not valid YAML"),
        ("- a list\n", "mine.yaml:1: must be keys and values (found list)"),
        ("dataset_path: json\n", "has no `task`"),
        ("task: mine\ndataset_path: json\ndataset_kwargs: {data_files: {test: none.jsonl}}\ntest_split: test\n", "none.jsonl"),
        ("task: mine\ninclude: none.yaml\n", "none.yaml"),
    ],
)
def test_an_error_says_why_a_task_cannot_be_loaded(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(text)
    message = refused(["mine.yaml"], tmp_path)
    assert message.startswith("task 'mine.yaml' cannot be loaded: ") and said in message


def test_a_task_without_items_is_refused(tmp_path: Path) -> None:
    assert "cannot be loaded" in refused([task_file(tmp_path, [])], tmp_path)


def test_the_same_name_twice_is_refused(tmp_path: Path) -> None:
    task = task_file(tmp_path)
    (tmp_path / "evals" / "copy.yaml").write_text((tmp_path / task).read_text())
    assert "two tasks are called 'mine', the second in 'evals/copy.yaml'" in refused([task, "evals/copy.yaml"], tmp_path)


def test_a_task_that_runs_generated_code_is_refused(tmp_path: Path) -> None:
    assert "runs generated code; remove it" in refused([task_file(tmp_path, unsafe_code=True)], tmp_path)


def test_a_task_without_a_score_per_item_is_refused(tmp_path: Path) -> None:
    f1 = [{"metric": "f1", "aggregation": "f1", "higher_is_better": True}]
    two = [item for item in ITEMS if len(item["choices"]) == 2]
    assert "task 'mine' has no score per item, only over all of them: f1" in refused(
        [task_file(tmp_path, two, metric_list=f1)], tmp_path
    )
    message = refused([task_file(tmp_path, metric_list=f1)], tmp_path)  # of more than two choices there is no f1
    assert message.startswith("the harness cannot mark mine (student): Target is multiclass")


def test_several_data_files_are_found_beside_the_task(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    here = str(tmp_path / "a.jsonl")
    assert module._beside(tmp_path, ["a.jsonl", "b.jsonl"]) == [here, "b.jsonl"]
    assert module._beside(tmp_path, {"test": "a.jsonl", "train": ["a.jsonl"]}) == {"test": here, "train": [here]}
    assert module._beside(tmp_path, "https://example.org/a.jsonl") == "https://example.org/a.jsonl"


# metrics


def test_metrics_are_mean_scores_and_their_paired_difference() -> None:
    scores = {"student": np.array([1.0, 0, 1, 1]), "teacher": np.array([1.0, 1, 1, 1]), "base": np.zeros(4)}
    metrics = task_metrics(TaskResult("mine", "acc_norm", 0.25, scores), BootstrapConfig(200))
    assert {name: (metric.value, metric.n) for name, metric in metrics.items()} == {
        "task_mine_accuracy": (0.75, 4),
        "task_mine_accuracy_teacher": (1.0, 4),
        "task_mine_accuracy_base": (0.0, 4),
        "task_mine_change": (-0.25, 4),
    }
    assert metrics["task_mine_change"].low < -0.25 < 0 < metrics["task_mine_change"].high  # four items decide nothing


def test_metrics_of_one_item_of_none_and_of_nan() -> None:
    def metrics(*values: float) -> dict[str, Any]:
        return task_metrics(TaskResult("mine", "acc", None, {"student": np.array(values)}), BootstrapConfig(100))

    assert list(metrics(1.0)) == ["task_mine_accuracy"]
    assert metrics(1.0)["task_mine_accuracy"].low < 1.0  # one item makes nothing certain
    assert metrics() == {}
    assert math.isnan(metrics(1.0, math.nan)["task_mine_accuracy"].value)
