"""Whether llama.cpp reads a chat template as training does: it has a Jinja of its own, and is asked with a file of a few bytes.

template_problem(tokenizer)   # None, or "llama.cpp cannot read the chat template (selectattr: unknown test 'tool_calls')"
"""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from factory.config.schema import TeacherContext, Turn
from factory.errors import ServeError
from factory.export.gguf import write_base_gguf
from factory.models.chat import messages, render
from factory.models.llama_server import LlamaServer

NAMED = ("bos_token", "eos_token")  # what a template may write of its tokenizer
CONTEXTS = (TeacherContext(), TeacherContext(system="Be brief.", examples=(Turn(prompt="Ready?", completion="Yes."),)))
REASON = re.compile(r".*\bError: ")
SHOWN = 40  # characters of two prompts, where they part


def template_problem(tokenizer: PreTrainedTokenizerBase) -> str | None:
    """``template_problem(tokenizer)``: why llama.cpp cannot use its chat template, or writes another prompt with it.

    None where it writes the prompts of training, and where llama.cpp is not installed.
    """
    if find_spec("xllamacpp") is None:
        return None
    tokens: Any = {name: getattr(tokenizer, name) for name in NAMED}
    return _problem(str(tokenizer.chat_template), tuple(tokens.items()))


@lru_cache(maxsize=16)
def _problem(template: str, named: tuple[tuple[str, str | None], ...]) -> str | None:
    tokenizer = _bytes_alone(template, dict(named))
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=1,
        max_position_embeddings=64,
        tie_word_embeddings=True,
    )
    with TemporaryDirectory() as folder:
        path = Path(folder, "template.gguf")
        write_base_gguf(LlamaForCausalLM(config), tokenizer, path, "f16", name="template", license="")
        try:
            with LlamaServer(path, context=64, threads=1) as server:
                return _difference(server, tokenizer)
        except ServeError as error:
            if "chat template" not in str(error):
                raise
            return f"llama.cpp cannot read the chat template ({REASON.sub('', str(error))})"


def _difference(server: LlamaServer, tokenizer: PreTrainedTokenizerBase) -> str | None:
    for context in CONTEXTS:
        turns = messages("What is gout?", context)
        own, theirs = render(tokenizer, turns, prompt=True), server.apply_template(turns)
        if own != theirs:
            same = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(own, theirs, strict=False)))
            found, wanted = (text[same : same + SHOWN] for text in (theirs, own))
            return f"llama.cpp writes another prompt from the chat template ({found!r} where training has {wanted!r})"
    return None


def _bytes_alone(template: str, named: dict[str, str | None]) -> PreTrainedTokenizerFast:
    """A tokenizer of single bytes and of what the template may name: a template sees no other token."""
    tokens = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "ab"]  # llama.cpp wants at least one merge
    backend = Tokenizer(models.BPE({token: row for row, token in enumerate(tokens)}, [("a", "b")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, chat_template=template, **named)
