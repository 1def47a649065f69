"""The router: where it sends a text, when it abstains, and saving and loading."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from factory.config.schema import RouterConfig
from factory.data import router as module
from factory.data.router import DomainRouter, calibration_error, choose_threshold
from factory.errors import DataError, StorageError

CONFIG = RouterConfig()
WORDS = {
    "cooking": ("bake", "boil", "fry", "oven", "soup", "salt"),
    "sailing": ("anchor", "boat", "harbor", "sail", "tide", "wind"),
    None: ("alarm", "bank", "joke", "music", "song", "weather"),
}


class WordEncoder:
    """Deterministic vectors: a fixed random direction a word, summed. Texts that share words are close."""

    def encode(self, sentences: list[str], /) -> npt.NDArray[np.float32]:
        return np.stack([self._vector(sentence) for sentence in sentences])

    def _vector(self, sentence: str) -> npt.NDArray[np.float32]:
        words = sentence.lower().split() or [""]
        seeds = [int.from_bytes(word.encode()[:8].ljust(8, b"\0"), "big") for word in words]
        return np.sum([np.random.default_rng(seed).normal(size=24) for seed in seeds], axis=0).astype(np.float32)


def texts_and_labels() -> tuple[list[str], list[str | None]]:
    texts, labels = [], []
    for label, words in WORDS.items():
        for first in words:
            for second in words:
                texts.append(f"{first} {second}")
                labels.append(label)
    return texts, labels


@pytest.fixture(scope="module")
def router() -> DomainRouter:
    texts, labels = texts_and_labels()
    return DomainRouter.fit(texts, labels, WordEncoder(), CONFIG, seed=0)


def test_texts_go_to_their_domain_and_others_to_none(router: DomainRouter) -> None:
    routes = router.route(["boil soup salt", "harbor wind sail", "music joke alarm"])
    assert [route.domain for route in routes] == ["cooking", "sailing", None]
    assert routes[0].score == routes[0].scores["cooking"] >= routes[0].threshold
    assert set(routes[0].scores) == {"cooking", "sailing"}
    assert router.route([]) == []


def test_one_domain_is_enough() -> None:
    texts, labels = texts_and_labels()
    pairs = [(text, label) for text, label in zip(texts, labels, strict=True) if label != "sailing"]
    router = DomainRouter.fit(*zip(*pairs, strict=True), WordEncoder(), CONFIG, seed=0)  # type: ignore[arg-type]
    assert [route.domain for route in router.route(["fry salt", "song weather"])] == ["cooking", None]
    assert router.report.macro_f1 > 0.9


def test_a_score_at_the_threshold_is_accepted_and_one_under_it_is_not(router: DomainRouter) -> None:
    score = router.route(["bake oven"])[0].score
    assert replace(router, threshold=score).route(["bake oven"])[0].domain == "cooking"
    assert replace(router, threshold=float(np.nextafter(score, 2))).route(["bake oven"])[0].domain is None


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 2)), min_size=20, max_size=80),
    st.floats(0.01, 0.5),
)
def test_threshold_never_rejects_more_than_allowed(pairs: list[tuple[float, int]], limit: float) -> None:
    pairs = [*pairs, (0.5, 0), (0.5, 1)]
    scores, y = np.array([score for score, _ in pairs]), np.array([label for _, label in pairs])
    probabilities = np.stack([1 - scores, scores, np.zeros_like(scores)], axis=1)
    threshold = choose_threshold(probabilities, y, limit)
    assert (scores[y > 0] < threshold).mean() <= limit


def test_threshold_separates_what_can_be_separated() -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.7, 0.8, 0.9])
    y = np.array([0, 0, 0, 1, 1, 1])
    assert 0.3 < choose_threshold(np.stack([1 - scores, scores], axis=1), y, 0.05) <= 0.7


@settings(max_examples=40)
@given(st.lists(st.text(max_size=40), max_size=5))
def test_scores_are_probabilities(router: DomainRouter, texts: list[str]) -> None:
    for route in router.route(texts):
        assert all(0 <= score <= 1 for score in route.scores.values())
        assert sum(route.scores.values()) <= 1 + 1e-9
        assert route.score == max(route.scores.values())
        assert (route.domain is None) == (route.score < route.threshold)


def test_report_counts_every_text_once(router: DomainRouter) -> None:
    report = router.report
    assert report.n == 108 == sum(sum(row.values()) for row in report.confusion.values())
    assert set(report.confusion) == {"none", "cooking", "sailing"} == set(report.per_domain)
    assert report.macro_f1 > 0.9
    assert report.out_of_domain_recall > 0.9
    assert report.false_rejection <= 0.15
    assert 0 <= report.calibration_error <= 1


def test_held_out_groups_are_harder_than_held_out_texts() -> None:
    """Grouped by first word, half of a held-out text is new to the model; the report must notice."""
    texts, labels = texts_and_labels()
    grouped = DomainRouter.fit(texts, labels, WordEncoder(), CONFIG, 0, groups=[text.split()[0] for text in texts])
    alone = DomainRouter.fit(texts, labels, WordEncoder(), CONFIG, 0)
    assert grouped.report.macro_f1 <= alone.report.macro_f1


def test_no_group_is_in_both_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = []

    class Spy(module.StratifiedGroupKFold):  # type: ignore[misc]
        def split(self, x, y=None, groups=None):  # type: ignore[no-untyped-def]
            for train, test in super().split(x, y, groups):
                splits.append(set(groups[train]) & set(groups[test]))
                yield train, test

    monkeypatch.setattr(module, "StratifiedGroupKFold", Spy)
    texts, labels = texts_and_labels()
    DomainRouter.fit(texts, labels, WordEncoder(), CONFIG, 0, groups=[text.split()[0] for text in texts])
    assert splits == [set()] * module.FOLDS


def test_max_per_domain_takes_turns_among_groups() -> None:
    texts, labels = texts_and_labels()
    rows = module._sample(labels, [text.split()[0] for text in texts], 12, seed=3)
    assert len(rows) == 36
    assert {text.split()[0] for text in (texts[row] for row in rows)} == {w for words in WORDS.values() for w in words}


def test_same_seed_same_version_other_data_other_version(router: DomainRouter) -> None:
    texts, labels = texts_and_labels()
    assert DomainRouter.fit(texts, labels, WordEncoder(), CONFIG, seed=0).version == router.version
    more = DomainRouter.fit([*texts, "stew pan"], [*labels, "cooking"], WordEncoder(), CONFIG, seed=0)
    assert more.version != router.version
    assert replace(router, threshold=0.123).version != router.version


def test_calibration_error_by_hand() -> None:
    confidence = np.array([0.95, 0.95, 0.95, 0.95, 0.55, 0.55])
    correct = np.array([True, True, True, False, True, False])
    assert calibration_error(confidence, correct) == pytest.approx(4 / 6 * 0.20 + 2 / 6 * 0.05)
    assert calibration_error(np.array([1.0]), np.array([True])) == 0


def test_saved_and_loaded_routes_alike(router: DomainRouter, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "router"
    router.save(folder)
    router.save(folder)  # replaces the older one
    loaded = DomainRouter.load(folder, WordEncoder())
    texts, _ = texts_and_labels()
    assert loaded.route(texts) == router.route(texts)
    assert (loaded.version, loaded.report, loaded.domains) == (router.version, router.report, router.domains)
    assert [path.name for path in folder.parent.iterdir()] == ["router"]
    assert sorted(path.name for path in folder.iterdir()) == ["checksums.json", "router.json", "router.npz"]


def test_full_disk_leaves_nothing(router: DomainRouter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module.np, "savez", full)
    with pytest.raises(StorageError, match=r"cannot write the router .* no space left"):
        router.save(tmp_path / "router")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["router.npz", "router.json"])
def test_damaged_file_is_one_clear_error(router: DomainRouter, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "router"
    router.save(folder)
    (folder / name).write_bytes((folder / name).read_bytes()[:-40])
    with pytest.raises(DataError, match=r"missing or damaged .* delete the folder to fit the router again") as error:
        DomainRouter.load(folder, WordEncoder())
    assert "\n" not in str(error.value)


def test_missing_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing or damaged"):
        DomainRouter.load(tmp_path / "nowhere", WordEncoder())


def test_changed_threshold_does_not_pass_for_the_saved_version(router: DomainRouter, tmp_path: Path) -> None:
    folder = tmp_path / "router"
    router.save(folder)
    changed = json.loads((folder / "router.json").read_text()) | {"threshold": 0.0}
    (folder / "router.json").write_text(json.dumps(changed))
    with pytest.raises(DataError, match=f"claims version {router.version}"):
        DomainRouter.load(folder, WordEncoder())


@pytest.mark.parametrize(("left_out", "message"), [("cooking", "'cooking' has 3"), (None, "general pool .* has 3")])
def test_too_few_texts_is_one_clear_error(left_out: str | None, message: str) -> None:
    texts, labels = texts_and_labels()
    rows = [row for row, label in enumerate(labels) if label != left_out]
    rows += [row for row, label in enumerate(labels) if label == left_out][:3]
    with pytest.raises(DataError, match=message):
        DomainRouter.fit([texts[r] for r in rows], [labels[r] for r in rows], WordEncoder(), CONFIG, seed=0)


def test_no_domain_at_all_is_an_error() -> None:
    texts = ["alarm one", "bank two", "joke three", "song four", "music five"]
    with pytest.raises(DataError, match="no text belongs to a domain"):
        DomainRouter.fit(texts, [None] * 5, WordEncoder(), CONFIG, seed=0)
