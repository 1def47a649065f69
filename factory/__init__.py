"""Distil one teacher into small domain students, kept in a local registry.

    from pathlib import Path

    from factory import Registry, ask, build_student, load_chat_model, load_specs, make_context

    specs = load_specs(Path("domains"))
    context = make_context(specs, specs.family("default"), registry=Registry("registry"), profile="demo")
    student = build_student(context, "healthcare", "medium")
    print(student.reference, student.manifest.evaluation.metrics["kl"])  # healthcare-medium@1, nats/token
    print(ask(load_chat_model(student, context.registry, context.device), "What is gout?").answer)

``__init__.pyi`` lists the public names. Each is imported on its first use, so ``import factory`` loads no torch.
"""

import os

import lazy_loader

# How often a thread of torch looks for work before it sleeps; libgomp's own number is 300,000. Beside a busy process training
# is then a quarter faster, and no slower on an idle machine (docs/log.md). libgomp reads it when torch is loaded.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
