"""From what the teacher knows to a trained adapter."""
