"""One OpenAI-compatible endpoint over the registry: names and policy here, llama.cpp, transformers or an upstream at work."""
