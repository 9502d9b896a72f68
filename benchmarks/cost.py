# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""FLOPs of the frozen part and of the heads, for published models: writes ``docs/cost.md``.

    python benchmarks/cost.py            # print it
    python benchmarks/cost.py --write    # write it

Models are built from their configs on PyTorch's meta device, without weights, and counted by
PyTorch's own ``FlopCounterMode``: exact, the same on any machine, and no download.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import mmpretrain.models  # noqa: F401 (registers its classes)
import mmseg.models  # noqa: F401
import torch
from mmpretrain.registry import MODELS as PRETRAIN_MODELS
from mmseg.registry import MODELS as SEG_MODELS
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from mmaselect.diffusion import FrozenDiT, build_process, known_families
from mmaselect.diffusion.codec import KLCodec, TinyCodec
from mmaselect.diffusion.pass_cost import PassCost
from mmaselect.launch.config import load_config

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / 'docs' / 'cost.md'

_DIT = dict(
    sample_size=64, patch_size=2, in_channels=4, out_channels=8, num_layers=28,
    attention_head_dim=72, num_attention_heads=16, num_embeds_ada_norm=1000,
)  # fmt: skip
_SD3 = dict(
    sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=24,
    attention_head_dim=64, num_attention_heads=24, joint_attention_dim=4096,
    caption_projection_dim=1536, pooled_projection_dim=2048, pos_embed_max_size=192,
)  # fmt: skip
_FLUX = dict(
    patch_size=1, in_channels=64, num_layers=19, num_single_layers=38, attention_head_dim=128,
    num_attention_heads=24, joint_attention_dim=4096, pooled_projection_dim=768,
    guidance_embeds=True,
)  # fmt: skip
_VAE = dict(
    block_out_channels=(128, 256, 512, 512), layers_per_block=2,
    down_block_types=('DownEncoderBlock2D',) * 4, up_block_types=('UpDecoderBlock2D',) * 4,
)  # fmt: skip
_FLOW = dict(_class_name='FlowMatchEulerDiscreteScheduler')


@dataclass(frozen=True, eq=False)
class Model:
    """A published model: its config, and what goes into it.

    Attributes:
        name: Name in the table.
        transformer: Class in diffusers.
        config: Config of the transformer, as on the model's page.
        scheduler: Class of its scheduler.
        latent_channels: Latent channels of its VAE.
        condition: Shape of each of its conditions.
        heads: Our config of its UperNet, which says what is read.
        size: Side of an image, in pixels.
    """

    name: str
    transformer: str
    config: dict[str, Any]
    scheduler: str
    latent_channels: int
    condition: dict[str, tuple[int, ...]]
    heads: str
    size: int = 512

    @property
    def block(self) -> int:
        """The deepest that is read."""
        config = ROOT / 'configs' / '_base_' / 'models' / f'aselect_{self.heads}_upernet.py'
        return max(load_config(config).model.backbone.blocks)


#: The empty prompt without T5: 77 tokens of CLIP and 256 of zeros, as the pipeline makes them.
_CLIP = dict(prompt_embeds=(333, 4096), pooled_prompt_embeds=(2048,))
_T5 = dict(prompt_embeds=(512, 4096), pooled_prompt_embeds=(768,), guidance=())
_DIT_REST = ('DDPMScheduler', 4, dict(class_labels=()), 'dit-xl2')
_FLOW = 'FlowMatchEulerDiscreteScheduler'
_SD35 = dict(
    _SD3, pos_embed_max_size=384, dual_attention_layers=tuple(range(13)), qk_norm='rms_norm'
)
MODELS = (
    Model('DiT-XL/2-256', 'DiTTransformer2DModel', dict(_DIT, sample_size=32), *_DIT_REST, 256),
    Model('DiT-XL/2-512', 'DiTTransformer2DModel', _DIT, *_DIT_REST),
    Model('SD3-medium', 'SD3Transformer2DModel', _SD3, _FLOW, 16, _CLIP, 'sd3-medium'),
    Model('SD3.5-medium', 'SD3Transformer2DModel', _SD35, _FLOW, 16, _CLIP, 'sd3-medium'),
    Model('FLUX.1-dev', 'FluxTransformer2DModel', _FLUX, _FLOW, 16, _T5, 'flux1-dev'),
)


def flops(call: Callable[[], Any]) -> int:
    """FLOPs of a call, two for each multiply-add of products, convolutions and attention."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@dataclass(frozen=True)
class Cost:
    """FLOPs of one image, and what a cache keeps of it.

    Attributes:
        encoder: Encoder of the VAE's encoder.
        read: Read of the transformer up to the query of the block that is read.
        whole: FLOPs of the whole transformer.
        heads: Heads of each head, forward.
        latent_bytes: Latent bytes of the latent in float32.
        map_bytes: Map bytes of one feature map in 16 bits.
        width: Channels of that map.
        search: A pass of a search of all blocks and features.
    """

    encoder: int
    read: int
    whole: int
    heads: dict[str, int]
    latent_bytes: int
    map_bytes: int
    width: int
    search: PassCost


def count(model: Model) -> Cost:
    """Count one model of the table."""
    stock = getattr(diffusers, model.transformer)
    with torch.device('meta'):
        whole = stock(**model.config).eval()
        family = known_families()[model.transformer](dict(whole.config))
        read = stock(**{**model.config, **family.build_overrides(model.block + 1)}).eval()
        vae = diffusers.AutoencoderKL(latent_channels=model.latent_channels, **_VAE)
        condition = {
            name: torch.zeros(1, *shape, dtype=torch.long if name == 'class_labels' else None)
            for name, shape in model.condition.items()
        }
        image = torch.zeros(1, 3, model.size, model.size)
    process = build_process(dict(_class_name=model.scheduler))
    dit = FrozenDiT(read, family, process, KLCodec(vae), condition, [model.block])
    latent = dit.encode(image)
    time = torch.zeros(1, device='meta')
    found = dit.features(latent, 100, latent)[model.block, 'query']
    search = FrozenDiT(whole, family, process, KLCodec(vae), condition, 'auto', 'auto')
    return Cost(
        encoder=flops(lambda: dit.encode(image)),
        read=flops(lambda: dit.features(latent, 100, latent)),
        whole=flops(lambda: family.run(whole, latent, time, condition)),
        heads=head_flops(found),
        latent_bytes=latent.numel() * 4,
        map_bytes=found.numel() * 2,
        width=found.shape[1],
        search=PassCost.of(search, model.size),
    )


def head_flops(features: Tensor) -> dict[str, int]:
    """FLOPs of the heads that the configs have, as they are trained, on maps of one kind."""
    width = features.shape[1]

    def config(name: str) -> Any:
        return load_config(ROOT / 'configs' / '_base_' / 'heads' / f'{name}.py').model

    linear, pool, uper = (config(name) for name in ('linear', 'attnpool', 'upernet_aux'))
    with torch.device('meta'):
        linear = PRETRAIN_MODELS.build(dict(linear.head, in_channels=width)).eval()
        pool = PRETRAIN_MODELS.build(dict(pool.head, in_channels=width)).eval()
        neck = SEG_MODELS.build(dict(uper.neck, embed_dim=width)).eval()
        decode = SEG_MODELS.build(dict(uper.decode_head, in_channels=[width] * 4)).eval()
        auxiliary = SEG_MODELS.build(dict(uper.auxiliary_head, in_channels=width)).eval()

    def segment() -> None:
        pyramid = neck([features] * 4)
        decode(pyramid)
        auxiliary(pyramid)

    return {
        'linear': flops(lambda: linear((features.mean((2, 3)),))),
        'attention pool': flops(lambda: pool((features,))),
        'UperNet': flops(segment),
    }


def giga(value: float) -> str:
    """GFLOP, as precise as is of use."""
    return f'{value / 1e9:,.0f}' if value >= 1e10 else f'{value / 1e9:.2g}'


def table(costs: dict[Model, Cost]) -> str:
    """The page."""
    tiny = diffusers.AutoencoderTiny
    with torch.device('meta'):
        taesd = flops(lambda: TinyCodec(tiny())(torch.zeros(1, 3, 512, 512)))
    lines = [
        '# What an image costs',
        '',
        'GFLOP per image, forward, two for each multiply-add. Counted by the `FlopCounterMode` of',
        'PyTorch, on models that are built from the published configs on the meta device: the same',
        'on any machine. Written by `python benchmarks/cost.py --write`.',
        '',
        '| model | pixels | VAE encoder | transformer, to block | all of it | share not run |',
        '|---|---|---|---|---|---|',
    ]
    for model, cost in costs.items():
        lines.append(
            f'| {model.name} | {model.size} | {giga(cost.encoder)} | '
            f'{giga(cost.read)} ({model.block}) | {giga(cost.whole)} | '
            f'{1 - cost.read / cost.whole:.0%} |'
        )
    lines += [
        '',
        f'The encoder of TAESD, for 512 pixels: {giga(taesd)}. A selection encodes an image (and',
        'each view of it) once; its transformer runs at every timestep.',
        '',
        '## Heads',
        '',
        'Forward, as the configs have them: 200 classes for the two of classification, 150 for',
        'UperNet, which is counted with its neck, four maps and the auxiliary head.',
        '',
        '| model | linear | attention pool | UperNet |',
        '|---|---|---|---|',
    ]
    for model, cost in costs.items():
        heads = ' | '.join(giga(value) for value in cost.heads.values())
        lines.append(f'| {model.name} | {heads} |')
    lines += [
        '',
        '## What a search of places takes',
        '',
        "`blocks='auto', feature='auto'` holds the weights of all blocks, and a pass runs to the",
        'deepest place that may still win. Here are weights in 16 bits and GFLOP of a whole pass,',
        "next to those of the default place, the query of the family's default block.",
        "`blocks='auto:<=N'` bounds both.",
        '',
        '| model | default block | weights, GiB | of a search, GiB | GFLOP | of a search |',
        '|---|---|---|---|---|---|',
    ]
    for model, cost in costs.items():
        search = cost.search
        # Built in 32 bits.
        held, whole = (each / 2 / 2**30 for each in (search.default_weights, search.weights))
        lines.append(
            f'| {model.name} | {search.default[0]} | {held:.1f} | {whole:.1f} | '
            f'{giga(search.to([search.default]))} | {giga(search.whole)} |'
        )
    lines += [
        '',
        '## What a cache saves',
        '',
        'A step runs the frozen part once, and the head about three times (forward, and twice that',
        "backward). Here are the shares of a step's FLOPs that are no more once an image was seen,",
        "and what it takes on disk: a latent in fp32 (`cache='latents'`), one map in 16 bits",
        "(`cache='features'`; `UperNet` in our configs for DiT-XL/2 reads four).",
        '',
        '| model | head | latents save | features save | latent, kB | map, kB |',
        '|---|---|---|---|---|---|',
    ]
    for model, cost in costs.items():
        for head, value in cost.heads.items():
            step = cost.encoder + cost.read + 3 * value
            lines.append(
                f'| {model.name} | {head} | {cost.encoder / step:.0%} | '
                f'{(cost.encoder + cost.read) / step:.0%} | {cost.latent_bytes / 1e3:,.0f} | '
                f'{cost.map_bytes / 1e3:,.0f} |'
            )
    return '\n'.join(lines) + '\n'


def main() -> None:
    """Count, and print or write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--write', action='store_true', help='write docs/cost.md')
    write = parser.parse_args().write
    page = table({model: count(model) for model in MODELS})
    if write:
        PAGE.write_text(page, encoding='utf-8')
    else:
        print(page, end='')


if __name__ == '__main__':
    main()
