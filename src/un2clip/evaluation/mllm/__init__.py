"""What the benchmarks of multimodal language models share: questions, tables, answers, and the assistant asked."""
