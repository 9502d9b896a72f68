# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Z-Image (arXiv 2511.22699): single-stream blocks over image and text, both padded to 32 tokens.

The blocks that are counted are those of the joint sequence. Two refiners, for image and text
alone, come before them and are always built.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from mmaselect.diffusion.families.base import FEATURES, POST_FEATURES, Tap, register_family
from mmaselect.diffusion.families.text import TextFamily


@register_family
class ZImageFamily(TextFamily):
    """``ZImageTransformer2DModel``: ``Tongyi-MAI/Z-Image``, ``Tongyi-MAI/Z-Image-Turbo``."""

    transformer_class = 'ZImageTransformer2DModel'
    title = 'Z-Image'
    features = FEATURES + POST_FEATURES
    pipeline_class = 'ZImagePipeline'
    min_diffusers = '0.36'

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        if config.get('siglip_feat_dim') is not None:
            raise ValueError(
                'Z-Image-Omni (siglip_feat_dim is set) arranges its tokens around reference images '
                "and is not supported: use 'Tongyi-MAI/Z-Image' or 'Tongyi-MAI/Z-Image-Turbo'"
            )

    @property
    def num_blocks(self) -> int:
        return int(self.config['n_layers'])

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

    def build_overrides(self, num_blocks: int) -> dict[str, Any]:
        return {'n_layers': num_blocks}

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

    def block(self, transformer: nn.Module, index: int) -> nn.Module:
        return transformer.layers[index]

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        attention = block.attention
        return {
            'query': Tap(attention.to_q, _image_first),
            'key': Tap(attention.to_k, _image_first),
            'value': Tap(attention.to_v, _image_first),
            'attention': Tap(attention, _image_first),
            'output': Tap(block, _image_first),
            'query_post': Tap(attention, _image_first, operand='query'),
            'key_post': Tap(attention, _image_first, operand='key'),
        }[feature]


def _image_first(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """The sequence is image, its padding, text, its padding."""
    return tokens[:, : grid[0] * grid[1]]
