"""Distillation: losses, the teacher's soft targets, and the trainer."""
