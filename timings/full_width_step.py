"""One full-width training step without any published weights: ViT-L-14 through unCLIP-L, batch 1.

    python -m timings.full_width_step                         float32
    python -m timings.full_width_step --dtype bfloat16 --checkpointing
    python -m timings.full_width_step --smallest      narrow widths, one block: only that it runs

Encode the image by the VAE at 768 px, embed it by the encoder, noise, predict, loss, backward through the frozen
U-Net, AdamW. Prints a row for a table: what, losses, seconds of each part, peak memory of the process.
"""

import argparse
import resource
import time

import open_clip
import torch

from un2clip.datasets.loader import to_device
from un2clip.decoders import Cond, NoiseConfig
from un2clip.planning.published import CONFIG, new_generator

NOISE = NoiseConfig(
    timesteps=(0, 999), timesteps_drawn="independent", noise_level=(0, 0), condition_dropout=0.0, time_scale=1.0
)
ENCODER = "ViT-L-14-quickgelu"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="the generator is held in")
    parser.add_argument("--checkpointing", action="store_true", help="of the U-Net's activations")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--smallest", action="store_true", help="for the tests: that it runs, not how fast")
    args = parser.parse_args()
    torch.manual_seed(0)
    device, rng = torch.device(args.device), torch.Generator().manual_seed(0)
    with device:
        generator = new_generator(CONFIG["embed_dim"]["unclip-l"], smallest=args.smallest)
    generator.prepare(dtype=getattr(torch, args.dtype), checkpointing=args.checkpointing)
    vision_cfg = open_clip.get_model_config(ENCODER)["vision_cfg"] | ({"layers": 1} if args.smallest else {})
    visual = open_clip.create_model(ENCODER, load_weights=False, vision_cfg=vision_cfg).visual.to(device)
    optimizer = torch.optim.AdamW(visual.parameters(), lr=3e-7)
    pixel_values = torch.randn(args.batch, 3, 224, 224, generator=rng).to(device)
    images = torch.rand(args.batch, 3, generator.image_px, generator.image_px, generator=rng) * 2 - 1
    for step in range(args.steps):
        marks = [_now(device)]
        latents = generator.encode(images)
        marks.append(_now(device))
        noise_sample = to_device(generator.draw(args.batch, rng, NOISE), device)
        loss = generator.loss(latents, Cond(vector=visual(pixel_values)), noise_sample)["diffusion_loss"].mean()
        marks.append(_now(device))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(visual.parameters(), 1.0).item()
        marks.append(_now(device))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        marks.append(_now(device))
        seconds = [f"{after - before:.1f}" for before, after in zip(marks, marks[1:], strict=False)]
        assert all(parameter.grad is None for parameter in generator.parameters()) and norm > 0
        if step == 0:
            print("| generator in | checkpointing | device | batch | latents | loss | gradient norm "
                  "| VAE s | forward s | backward s | AdamW s | step s | peak GiB |")  # fmt: skip
            print("|" + "---|" * 13)
        print(f"| {args.dtype} | {'yes' if args.checkpointing else 'no'} | {args.device} | {args.batch} "
              f"| {' x '.join(map(str, latents.shape[1:]))} | {loss.item():.4f} | {norm:.3g} | {' | '.join(seconds)} "
              f"| {marks[-1] - marks[0]:.1f} | {_peak(device):.1f} |", flush=True)  # fmt: skip


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def _peak(device: torch.device) -> float:
    """GiB, of the GPU or of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


if __name__ == "__main__":
    main()
