"""Multimodal assistants: a language model that reads an encoder's patch tokens, as LLaVA-1.5 (arXiv 2310.03744)."""
