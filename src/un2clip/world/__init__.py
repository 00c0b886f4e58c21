"""The laptop world: its scenes, what is written of them, its toy CLIP, VAE and generators.

All that is random in the toys' initial weights and in the order of their data comes from torch's global state, which
the stage `backbones` seeds.
"""
