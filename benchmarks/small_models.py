# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
r"""Train what ``tools/pretrain_dit.py`` does not: a small autoencoder, and a miniature of SD3.

Examples:
  # an autoencoder, for latents: tools/pretrain_dit.py --vae runs/vae
  python benchmarks/small_models.py autoencoder --data cifar10/train --out runs/vae --steps 1500
  # SD3's class and objective, on pixels, without text
  python benchmarks/small_models.py mmdit --data digits/train --out runs/sd3 --steps 1840
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, ModelMixin, SD3Transformer2DModel
from diffusers.training_utils import EMAModel
from torch import Tensor
from torch.optim import Optimizer

from mmaselect.diffusion import FrozenDiT
from mmaselect.diffusion.codec import PixelCodec
from mmaselect.diffusion.families import family_of
from mmaselect.diffusion.loading import PipelineSource
from mmaselect.diffusion.model_source import ModelSource
from mmaselect.images import to_model_range
from mmaselect.pretraining.clean import PixelSource
from mmaselect.pretraining.images import read_images
from mmaselect.pretraining.network import build_optimizers, build_schedule
from mmaselect.pretraining.objective import Objective
from mmaselect.pretraining.randomness import DataOrder, step_generator

#: Weight of the latents' divergence from a normal distribution.
DIVERGENCE = 1e-6
#: Tokens of the prompt, and their channels.
TEXT = (1, 32)


def draws(
    clean: PixelSource, count: int, options: argparse.Namespace, flip: float
) -> Iterator[tuple[Tensor, torch.Generator]]:
    """Clean images of each step, and what its further draws come from."""
    order = DataOrder(count, options.seed)
    for step in range(options.steps):
        generator = step_generator(options.seed, step, 0, torch.device('cpu'))
        index = order(step * options.batch, options.batch)
        mirrored = torch.rand(options.batch, generator=generator) < flip
        yield clean(index, mirrored, generator), generator


def optimize(
    model: torch.nn.Module,
    optimizers: Sequence[Optimizer],
    losses: Iterable[Tensor],
    options: argparse.Namespace,
    after: Callable[[], None] = lambda: None,
) -> None:
    """Step down the losses, with a constant rate that falls to 0 over the last quarter."""
    schedule = build_schedule('wsd', options.steps, options.warmup_steps, options.steps // 4)
    started = time.monotonic()
    for step, loss in enumerate(losses):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group['lr'] = group['initial_lr'] * schedule(step)
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        after()
        if (step + 1) % 50 == 0 or step + 1 == options.steps:
            rate = (step + 1) * options.batch / (time.monotonic() - started)
            print(f'step {step + 1}: loss {loss.item():.4f}, {rate:.0f} images/s', flush=True)


def train_autoencoder(options: argparse.Namespace) -> ModelMixin:
    """An ``AutoencoderKL`` of half the side in latents, whose scale is measured at the end."""
    images = read_images(options.data).images
    clean = PixelSource(images)
    torch.manual_seed(options.seed)
    model = AutoencoderKL(
        down_block_types=('DownEncoderBlock2D',) * 2,
        up_block_types=('UpDecoderBlock2D',) * 2,
        block_out_channels=(options.width, 2 * options.width),
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=images.shape[-1],
        mid_block_add_attention=False,
    )

    def losses() -> Iterator[Tensor]:
        for sample, generator in draws(clean, len(images), options, 0.5):
            latent = model.encode(sample).latent_dist
            decoded = model.decode(latent.sample(generator)).sample
            yield F.mse_loss(decoded, sample) + DIVERGENCE * latent.kl().mean()

    optimizers = build_optimizers(model, 'adamw', options.lr)
    optimize(model, optimizers, losses(), options)
    model.eval()
    with torch.no_grad():
        sample = to_model_range(images[:: max(len(images) // 512, 1)])
        latent = model.encode(sample).latent_dist.mean
        error = F.mse_loss(model.decode(latent).sample, sample)
    print(f'mean squared error {error:.5f} (range -1 to 1), spread of latents {latent.std():.3f}')
    model.register_to_config(scaling_factor=float(1 / latent.std()))
    return model


def train_mmdit(options: argparse.Namespace) -> ModelMixin:
    """An ``SD3Transformer2DModel`` on pixels by flow matching; its prompt is always zeros."""
    images = read_images(options.data).images
    torch.manual_seed(options.seed)
    patch = 4
    model = SD3Transformer2DModel(
        sample_size=images.shape[-1],
        patch_size=patch,
        in_channels=3,
        out_channels=3,
        num_layers=6,
        attention_head_dim=32,
        num_attention_heads=options.width // 32,
        caption_projection_dim=options.width,
        joint_attention_dim=TEXT[1],
        pooled_projection_dim=TEXT[1],
        pos_embed_max_size=images.shape[-1] // patch,
        qk_norm='rms_norm',
    )
    objective = Objective('flow', 'logit-normal')
    average = EMAModel(model.parameters(), decay=0.998)
    text, pooled = torch.zeros(options.batch, *TEXT), torch.zeros(options.batch, TEXT[1])

    def losses() -> Iterator[Tensor]:
        for sample, generator in draws(PixelSource(images), len(images), options, 0.0):
            noise = torch.randn(sample.shape, generator=generator)
            times = objective.draw_times(options.batch, generator)
            noisy, model_times = objective.add_noise(sample, noise, times)
            output = model(noisy, text, pooled, model_times).sample
            yield F.mse_loss(output, objective.expected_output(sample, noise, model_times))

    optimizers = build_optimizers(model, 'muon', options.lr)
    optimize(model, optimizers, losses(), options, after=lambda: average.step(model.parameters()))
    average.copy_to(model.parameters())
    objective.scheduler.save_pretrained(options.out / 'scheduler')
    return model


def read_model(
    pretrained: str, blocks: Sequence[int] | None = None, features: Sequence[str] = ('query',)
) -> FrozenDiT:
    """A model that the package reads, or a miniature of SD3, which has no text encoders.

    Args:
        pretrained: What ``FrozenDiT.from_pretrained`` takes, or the folder of the miniature.
        blocks: Blocks that are read; all if None.
        features: Features that are read.
    """
    folder = Path(pretrained).expanduser()
    if (folder / 'model_index.json').exists() or not (folder / 'transformer').exists():
        if blocks is None:
            blocks = range(FrozenDiT.from_pretrained(pretrained, blocks=0).num_blocks)
        return FrozenDiT.from_pretrained(pretrained, blocks=list(blocks), feature=features)
    source = PipelineSource(ModelSource(folder))
    family = family_of(source)
    transformer = family.load_transformer(source, family.num_blocks, torch.float32)
    text = dict(prompt_embeds=torch.zeros(1, *TEXT), pooled_prompt_embeds=torch.zeros(1, TEXT[1]))
    blocks = range(family.num_blocks) if blocks is None else blocks
    return FrozenDiT(
        transformer,
        family,
        family.build_process(source),
        PixelCodec(),
        text,
        list(blocks),
        features,
    )


def main() -> None:
    """Train one, and save it in the layout of diffusers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = dict(autoencoder=(train_autoencoder, '.'), mmdit=(train_mmdit, 'transformer'))
    parser.add_argument('kind', choices=kinds)
    parser.add_argument('--data', required=True, help='folder of square images of one size')
    parser.add_argument('--out', type=Path, required=True)
    parser.add_argument('--steps', type=int, required=True)
    parser.add_argument('--batch', type=int, default=128)
    parser.add_argument('--width', type=int, default=32)
    parser.add_argument('--lr', type=float, default=1e-3)
    parser.add_argument('--warmup-steps', type=int, default=100)
    parser.add_argument('--seed', type=int, default=0)
    options = parser.parse_args()
    train, folder = kinds[options.kind]
    train(options).save_pretrained(options.out / folder)


if __name__ == '__main__':
    main()
