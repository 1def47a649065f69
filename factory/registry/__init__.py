"""Published versions on disk: manifests, aliases, an index. No torch."""
