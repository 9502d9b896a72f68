# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Z-Image (arXiv 2511.22699): single-stream blocks over image and text, both padded to 32 tokens.

The blocks that are counted are those of the joint sequence. Two refiners, for image and text
alone, come before them and are always built.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmaselect.diffusion.families.base import FEATURES, POST_FEATURES, Published, Tap
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.text import TextFamily
from mmaselect.diffusion.families.tokens import first_tokens, usual_taps
from mmaselect.diffusion.single_file import OriginalLayout

_CONFIG = {
    'all_f_patch_size': [1],
    'all_patch_size': [2],
    'axes_dims': [32, 48, 48],
    'axes_lens': [1536, 512, 512],
    'cap_feat_dim': 2560,
    'dim': 3840,
    'in_channels': 16,
    'n_heads': 30,
    'n_kv_heads': 30,
    'n_layers': 30,
    'n_refiner_layers': 2,
    'norm_eps': 1e-05,
    'qk_norm': True,
    'rope_theta': 256.0,
    't_scale': 1000.0,
}


@register_family
class ZImageFamily(TextFamily):
    """``ZImageTransformer2DModel``: ``Tongyi-MAI/Z-Image``, ``Tongyi-MAI/Z-Image-Turbo``."""

    transformer_class = 'ZImageTransformer2DModel'
    title = 'Z-Image'
    features = FEATURES + POST_FEATURES
    stacks = (('n_layers', 'layers'),)
    pipeline_class = 'ZImagePipeline'
    min_diffusers = '0.36'
    original_layout = OriginalLayout('layers')
    published = (
        Published('Tongyi-MAI/Z-Image', _CONFIG, 16, 'flow, static shift', 'apache-2.0'),
        Published('Tongyi-MAI/Z-Image-Turbo', _CONFIG, 16, 'flow, shift 3', 'apache-2.0'),
    )

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        if config.get('siglip_feat_dim') is not None:
            raise ValueError(
                'Z-Image-Omni (siglip_feat_dim is set) arranges its tokens around reference images '
                "and is not supported: use 'Tongyi-MAI/Z-Image' or 'Tongyi-MAI/Z-Image-Turbo'"
            )

    @property
    def width(self) -> int:
        return int(self.config['dim'])

    @property
    def patch_size(self) -> int:
        return int(self.config['all_patch_size'][0])

    def check_grid(self, grid: tuple[int, int], stride: int) -> None:
        _, *limits = self.config['axes_lens']
        if any(side > limit for side, limit in zip(grid, limits, strict=True)):
            height, width = (limit * stride for limit in limits)
            raise ValueError(
                f'{self.title} has positions for {limits[0]}x{limits[1]} tokens, and this image '
                f'makes {grid[0]}x{grid[1]}: resize or crop it to at most {height}x{width} pixels'
            )

    def embed(self, pipeline: Any, prompt: str, **options: Any) -> dict[str, Tensor]:
        embeds, _ = pipeline.encode_prompt(prompt, device='cpu', do_classifier_free_guidance=False)
        return {'prompt_embeds': embeds[0].unsqueeze(0)}

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        # Its time runs from 0 (noise) to 1 (clean); an image is a clip of one frame.
        transformer(
            list(latent.unsqueeze(2).unbind()),
            (1000 - model_time) / 1000,
            list(condition['prompt_embeds'].unbind()),
            patch_size=self.patch_size,
            f_patch_size=int(self.config['all_f_patch_size'][0]),
        )

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        return usual_taps(block, block.attention, first_tokens)[feature]
