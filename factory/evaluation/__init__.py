"""Is the student good, and can it be trusted."""
