"""Image-text tars to batches: checked shards, the latents cache, the order of a training."""
