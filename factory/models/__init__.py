"""The teacher and the student bases: references, teacher, pruning, vocabulary, student."""
