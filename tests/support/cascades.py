"""A server with a cascade, a tiny and a small student of healthcare and a last step; its engines say what a test tells them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from factory.config.endpoints import EndpointSpec
from factory.config.schema import ServeConfig
from factory.data.router import Route
from factory.evaluation.confidence import SIGNALS, Calibration, Confidence
from factory.registry.registry import Registry
from factory.serve.app import gateway
from factory.serve.auth import KeyFile
from factory.serve.limits import Limits
from factory.serve.prompts import Prompts
from factory.serve.readiness import Readiness
from factory.serve.resolver import TEACHER, ModelResolver
from factory.serve.server import Options
from support import manifests, tiny
from support.engines import FakeEngines, Says, fake_engines
from support.serving import listening_app

SURE, UNSURE = 0.01, 2.0  # nats of a token
EIGHT = "one two three four five six seven eight"  # FIRST tokens
TINY, SMALL = "healthcare-tiny@1", "healthcare-small@1"
CONTEXT = {"system": "Be brief.", "examples": [{"prompt": "what is light", "completion": "it is sugar"}]}


def calibration(threshold: float) -> Calibration:
    """Confidence falls with the mean of nats; ``keep`` 0.95 leads to this threshold, ``keep`` 1 to 0.9."""
    count = len(SIGNALS)
    held_out = [(0.9, True)] * 90 + [(threshold, False)] * 5 + [(0.1, False)] * 5
    return Calibration((0.0,) * count, (1.0,) * count, (-5.0, *(0.0,) * (count - 1)), 3.0, tuple(held_out))


CONFIDENCE = Confidence(0.2, whole=calibration(0.6), beginning=calibration(0.7))


def confidence_file(tmp_path: Path) -> str:
    CONFIDENCE.save(tmp_path)
    return (tmp_path / "confidence.json").read_text()


@dataclass(frozen=True)
class Place:
    """A server with a tiny and a small student of healthcare and a teacher, and its engines."""

    url: str
    engines: FakeEngines

    def ask(self, model: str = "healthcare", key: str = "all", **more: Any) -> httpx.Response:
        body = {"model": model, "messages": [{"role": "user", "content": "what is asthma"}], "max_tokens": 16} | more
        headers = {"authorization": f"Bearer {key}"}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=30)

    def stream(self, **more: Any) -> tuple[httpx.Response, list[dict[str, Any]]]:
        answer = self.ask(stream=True, **more)
        lines = [line.removeprefix("data: ") for line in answer.text.split("\n\n") if line]
        return answer, [json.loads(line) for line in lines if line != "[DONE]"]

    def samples(self, name: str, key: str = "all") -> dict[tuple[str, ...], float]:
        """By the values of their labels, in the order of the labels' names."""
        text = httpx.get(f"{self.url}/metrics", headers={"authorization": f"Bearer {key}"}).text
        found = [one for family in text_string_to_metric_families(text) for one in family.samples if one.name == name]
        return {tuple(one.labels[label] for label in sorted(one.labels)): one.value for one in found}


@contextmanager
def place(
    tmp_path: Path,
    *,
    confident: bool = True,
    limits: Limits | None = None,
    models: Mapping[str, EndpointSpec] | None = None,
    spec: Mapping[str, Any] | None = None,
    **serve: Any,
) -> Iterator[Place]:
    """``with place(tmp_path, abstain="Ask.", cascade=["tiny", "small"]) as here:``; spec: the domain's YAML."""
    registry = Registry(tmp_path / "registry")
    files, domain = {"confidence.json": confidence_file(tmp_path)} if confident else {}, {"spec": spec} if spec else {}
    manifests.publish(registry, "healthcare-tiny", files=files, notice="Kein Arzt.", append_notice=True, **domain)
    manifests.publish(registry, files=files, notice="No advice.", append_notice=True, teacher_context=CONTEXT, **domain)
    keys = tmp_path / "keys.yaml"
    keys.write_text(
        "all: '*'\ntiny: [healthcare-tiny]\nteacher: [teacher]\nupper: [healthcare-small, teacher]\n"
        "students: [healthcare-tiny, healthcare-small]\n"
    )
    settings = ServeConfig.model_validate({"cascade": ["tiny", "small", "teacher"]} | serve)
    teacher = SimpleNamespace(reference="path:./teacher")
    family: Any = SimpleNamespace(
        name="default", default_size="small", serve=settings, teacher=teacher, api=None, models=models or {}, languages={}
    )
    route = Route(domain="healthcare", score=0.7, threshold=0.5, scores={})
    router: Any = SimpleNamespace(route=lambda texts: [route] * len(texts))
    chosen = Options(port=0, limits=limits or Limits(prompt_tokens=200))
    prompts = Prompts(registry, lambda: None, chosen.limits.prompt_tokens)  # type: ignore[arg-type, return-value]
    prompts._tokenizers |= {base: tiny.tokenizer() for base in ("default-small-base@1", TEACHER)}
    nothing: Any = SimpleNamespace(close=lambda: None)
    with fake_engines() as engines:
        engines.says |= {TINY: Says(EIGHT), SMALL: Says("small"), TEACHER: Says("taught")}
        app = gateway(
            ModelResolver(registry, family, lambda: router),
            engines,
            prompts,
            nothing,
            nothing,
            limits=chosen.limits,
            keys=KeyFile(keys),
            readiness=Readiness(registry, lambda: True, engines),
        )
        with listening_app(app, chosen) as url:
            yield Place(url, engines)
        assert engines.open == 0  # every engine was given back,
        assert engines.most <= 1  # and before the next one was taken


def text_of(answer: httpx.Response) -> str:
    return str(answer.json()["choices"][0]["message"]["content"])


def streamed(chunks: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content") or "" for chunk in chunks for choice in chunk["choices"])
