"""A tiny teacher that knows something: trained for a few seconds to answer the prompts of the tiny domains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from factory.models.chat import completion_ids, end_of_turn, prompt_ids
from support import endpoints, tiny

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


def train_teacher(
    folder: Path, prompts: list[str], answer: Callable[[str], str] = answer, steps: int = 150, model: Any = None
) -> None:
    """``train_teacher(folder, prompts)``: a transformers folder; some seconds on one core."""
    tokenizer, model = tiny.tokenizer(), model or tiny.llama()
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


def speaks(folder: Path) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """``far.says = speaks(folder)``: a model as an API: greedy answers with ``top_logprobs``, of the end of a turn too."""
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)

    def said(token: int, value: float) -> dict[str, Any]:
        text = tokenizer.decode([token])
        return {"token": text, "logprob": value, "bytes": None if "\ufffd" in text else list(text.encode())}

    @torch.no_grad()
    def says(body: dict[str, Any]) -> dict[str, Any]:
        ids = prompt_ids(tokenizer, body["messages"][-1]["content"])
        begun, content = len(ids), []
        while len(ids) < begun + body["max_tokens"] and (len(ids) == begun or ids[-1] != end_of_turn(tokenizer)):
            values, likeliest = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1).topk(20)
            top = [said(*one) for one in zip(likeliest.tolist(), values.tolist(), strict=True)]
            content.append(top[0] | {"top_logprobs": top[: body.get("top_logprobs", 0)]})
            ids.append(int(likeliest[0]))
        ended = ids[-1] == end_of_turn(tokenizer)
        answer = endpoints.completion(tokenizer.decode(ids[begun : -1 if ended else None]))
        answer["choices"][0] |= {"finish_reason": "stop" if ended else "length", "logprobs": {"content": content}}
        return answer

    return says
