"""From sources to a domain's data set."""
