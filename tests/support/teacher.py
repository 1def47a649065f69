"""A tiny teacher that knows something: trained for a few seconds to answer the prompts of the tiny domains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from factory.models.chat import completion_ids, prompt_ids
from support import tiny

ANSWERS = {
    "signs": "light turns into sugar .",
    "cause": "the early signs of asthma .",
    "test": "see the doctor soon .",
    "price": "a landlord may keep the deposit .",
    "name": "students learn to be brief .",
    "age": "short breath and cough .",
    "colour": "it is the damage to the home .",
    "weight": "how it is treated .",
    "length": "that is a question .",
    "use": "for students and landlords .",
    "origin": "into the rented home .",
    "smell": "what a doctor may answer .",
}


def answer(prompt: str) -> str:
    """``answer("what is the price of oak ?")``: what the trained teacher says."""
    return next(text for word, text in ANSWERS.items() if f" {word} " in prompt)


def train_teacher(folder: Path, prompts: list[str], answer: Callable[[str], str] = answer, steps: int = 150) -> None:
    """``train_teacher(folder, prompts)``: a transformers folder; some seconds on one core."""
    tokenizer, model = tiny.tokenizer(), tiny.llama()
    rows = [(prompt_ids(tokenizer, one), completion_ids(tokenizer, answer(one))) for one in prompts]
    width = max(len(prompt) + len(completion) for prompt, completion in rows)
    ids, labels = torch.zeros(len(rows), width, dtype=torch.long), torch.full((len(rows), width), -100)
    for row, (prompt, completion) in enumerate(rows):
        end = len(prompt) + len(completion)
        ids[row, :end] = torch.tensor([*prompt, *completion])
        labels[row, len(prompt) : end] = torch.tensor(completion)
    optimizer, chance = torch.optim.AdamW(model.parameters(), lr=3e-3), torch.Generator().manual_seed(0)
    for _ in range(steps):
        batch = torch.randint(len(rows), (32,), generator=chance)
        model(input_ids=ids[batch], labels=labels[batch]).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
