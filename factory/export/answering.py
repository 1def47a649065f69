"""What an application needs beside an exported student's weights, as one JSON: notice, stop tokens, and how sure it is."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from factory.evaluation.confidence import Confidence
from factory.export import reference
from factory.models.chat import stop_tokens
from factory.registry.manifest import StudentManifest
from factory.registry.plain_json import to_json
from factory.registry.versions import Version

ANSWERING = "answering.json"
REFERENCE = "confidence.py"
KEEP = (0.8, 0.9, 0.95, 0.99)  # for which thresholds are written


def write_answering(version: Version, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """``write_answering(version, tokenizer, folder)``: ``answering.json``, and ``confidence.py`` where the student has one.

    Nothing for a base, which answers nothing by itself.
    """
    manifest = version.manifest
    if not isinstance(manifest, StudentManifest):
        return
    confidence = Confidence.load(version.folder)
    content: dict[str, Any] = {
        "notice": manifest.notice,
        "append_notice": manifest.append_notice,
        "stop": [str(tokenizer.convert_ids_to_tokens(token)) for token in stop_tokens(tokenizer)],
        "max_tokens": manifest.max_completion_tokens,
        "confidence": exported_confidence(confidence) if confidence else None,
    }
    (folder / ANSWERING).write_bytes(to_json(content))
    if confidence:
        shutil.copyfile(str(reference.__file__), folder / REFERENCE)


def exported_confidence(confidence: Confidence) -> dict[str, Any]:
    """``exported_confidence(confidence)["thresholds"]["0.95"]["whole"]``: what ``confidence.py`` reads, and thresholds.

    The answers that it was fitted on stay in the registry.
    """
    fitted = confidence.content()
    for part in ("whole", "beginning"):
        del fitted[part]["held_out"]
    thresholds = {
        f"{keep:g}": {part: confidence.threshold(keep, beginning=part == "beginning") for part in ("whole", "beginning")}
        for keep in KEEP
    }
    return fitted | {"thresholds": thresholds}
