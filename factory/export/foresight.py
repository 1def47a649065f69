"""What a teacher's students will lack in llama.cpp, said before anything is made.

llamacpp_notes(teacher.config, teacher.tokenizer, family.sizes["small"])   # mostly none
"""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from factory.config.models import SizeSpec
from factory.errors import ExportError
from factory.export.gguf_architectures import architecture_of, check_config, exact_context
from factory.export.gguf_tokenizer import check_tokenizer, differences
from factory.export.llamacpp_template import template_problem
from factory.export.ollama import message_format
from factory.models.templates import working_template

WITHOUT = "so no gguf, no ollama, and factory serve only with an upstream; peft and merged work"


def llamacpp_notes(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, size: SizeSpec) -> list[str]:
    """``llamacpp_notes(teacher.config, teacher.tokenizer, size)``: what students cannot have, a line each.

    Nothing is known of a size that has a ``base`` of its own.
    """
    if size.base is not None:
        return []
    text: Any = config.get_text_config()
    try:
        check_config(text)
        check_tokenizer(tokenizer)
    except ExportError as error:
        return [f"{error}: {WITHOUT}"]
    if problem := template_problem(tokenizer):
        return [f"{problem}: {WITHOUT}; {working_template(tokenizer)}"]
    notes = [f"other token ids in llama.cpp: {one}" for one in differences(tokenizer)]
    try:
        message_format(tokenizer)
    except ExportError as error:
        notes.append(f"no ollama: {error}")
    whole, context = text.max_position_embeddings, exact_context(text)
    if context < whole:
        notes.append(f"contexts of {context:,} of {whole:,} tokens in llama.cpp, which computes longer ones otherwise")
    step, pruned = architecture_of(text).rope_step, size.layers or size.parameters or size.max_bytes
    if step and pruned:
        notes.append(
            f"a GGUF file only if every {step}th of the layers that stay is one without RoPE, as llama.cpp has it; all layers "
            "with fewer neurons (`intermediate_size`) always fit"
        )
    return notes
