"""Why examples are not in a data set: each reason in words, and the setting that decides how many it drops."""

from __future__ import annotations

from collections.abc import Mapping

REASONS = {  # key in manifests -> for people
    "empty_prompt": "without a prompt",
    "long_prompt": "long prompts",
    "long_answer": "long answers of sources",
    "duplicate": "repeated prompts",
    "conflicting_answer": "repeated prompts with another answer",
    "near_duplicate": "near duplicates",
    "held_out_combination": "combinations of held-out templates or values",
    "next_to_held_out": "next to a held-out passage",
    "contaminated": "overlapping with a held-out prompt",
    "shared_answer": "overlapping with a held-out answer",
    "over_limit": "over the limit",
    "personal_data": "with personal data",
    "no_completion": "without an answer",
    "empty": "empty answers",
    "looping": "looping answers",
    "cut_off": "answers cut off",
}
SETTINGS = {
    "long_prompt": "data.max_prompt_tokens",
    "long_answer": "data.max_completion_tokens",
    "over_limit": "data.max_examples",
    "near_duplicate": "data.near_duplicate",
    "cut_off": "data.max_completion_tokens",
    "personal_data": "personal_data",
}


def describe_dropped(dropped: Mapping[str, int]) -> str:
    """``describe_dropped({"cut_off": 12}) == "12 answers cut off (data.max_completion_tokens)"``: most first."""
    most_first = sorted(dropped.items(), key=lambda item: -item[1])
    named = [
        f"{count} {REASONS.get(reason, reason)}" + (f" ({SETTINGS[reason]})" if reason in SETTINGS else "")
        for reason, count in most_first
    ]
    return ", ".join(named) or "nothing"
