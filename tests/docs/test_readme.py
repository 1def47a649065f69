"""README.md stays a page that is read in one go; what the metrics mean is explained, all of them."""

from __future__ import annotations

import re

from support.markdown import ROOT, blocks, prose

from factory.evaluation.metrics import METRICS

README = ROOT / "README.md"
GLOSSARY = ["teacher", "family", "base", "healing", "domain", "adapter", "student", "gate"]


def test_it_has_at_most_150_lines() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 150


def test_it_explains_the_eight_words_that_everything_else_uses() -> None:
    words = prose(README).partition("## Words")[2].partition("\n## ")[0]
    assert re.findall(r"^\| (\w+) \|", words, re.MULTILINE) == ["word", *GLOSSARY]


def test_its_commands_stand_with_their_output() -> None:
    shown = [block.text.strip().splitlines() for block in blocks(README, "console")]
    assert len(shown) == 4
    assert all(lines[0].startswith("$ factory ") and len(lines) > 1 and "TODO" not in lines for lines in shown)


def test_every_metric_is_explained() -> None:
    explained = re.findall(r"`(\w+)`", prose(ROOT / "docs" / "evaluation.md").partition("## All metrics")[0])
    assert not set(METRICS) - set(explained)
