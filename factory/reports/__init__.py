"""What a person reads of a version: console, card, HTML page, comparison. No torch."""
