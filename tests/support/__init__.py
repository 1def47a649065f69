"""What tests share: tiny models, a whole factory on disk, fakes."""
