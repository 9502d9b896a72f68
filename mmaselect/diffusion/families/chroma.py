# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Chroma: FLUX.1 with one small network that computes the modulation of all blocks at once.

That network is asked for a table, with rows for each block of the whole model: first those of the
single-stream blocks, then those of the image and of the text stream of the two-stream ones. Where a
block finds its rows thus depends on how many blocks there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from mmaselect.diffusion.families.base import Published, Tap
from mmaselect.diffusion.families.flux import FluxFamily, pack, position_ids
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.tokens import last_tokens
from mmaselect.diffusion.single_file import OriginalLayout

if TYPE_CHECKING:
    from diffusers import ModelMixin


_CONFIG = {
    'patch_size': 1,
    'in_channels': 64,
    'out_channels': None,
    'num_layers': 19,
    'num_single_layers': 38,
    'attention_head_dim': 128,
    'num_attention_heads': 24,
    'joint_attention_dim': 4096,
    'axes_dims_rope': [16, 56, 56],
    'approximator_num_channels': 64,
    'approximator_hidden_dim': 5120,
    'approximator_layers': 5,
}


@register_family
class ChromaFamily(FluxFamily):
    """``ChromaTransformer2DModel``: ``lodestones/Chroma1-HD``, ``-Base``, ``-Flash``.

    Blocks are counted as FLUX.1's are. Option: ``max_sequence_length``, T5 tokens that the prompt
    is padded to; all but the first of the padding are masked.
    """

    transformer_class = 'ChromaTransformer2DModel'
    title = 'Chroma'
    pipeline_class = 'ChromaPipeline'
    min_diffusers = '0.35'
    condition_options: ClassVar = {'max_sequence_length': 512}
    waits_in = 'transformer_chroma.py: makes the guidance of 0 on the CPU'
    original_layout = OriginalLayout('double_blocks', 'single_blocks', width=3072)
    published = (Published('lodestones/Chroma1-HD', _CONFIG, 16, 'flow', 'apache-2.0'),)

    def trim(self, transformer: ModelMixin, num_blocks: int) -> None:
        """Give a truncated model the whole model's modulation table, and its counts of blocks."""
        double, single = self.stack_lengths
        table = transformer.time_text_embed
        transformer.time_text_embed = type(table)(
            num_channels=int(self.config.get('approximator_num_channels', 64)) // 4,
            out_dim=3 * single + 2 * 6 * double + 2,
        )
        # The offsets of the rows are taken from the lengths of the two lists. What stands in for
        # the missing blocks is never run: the pass ends before.
        for blocks, total in (
            (transformer.transformer_blocks, double),
            (transformer.single_transformer_blocks, single),
        ):
            blocks.extend(nn.Identity() for _ in range(total - len(blocks)))

    def embed(self, pipeline: Any, prompt: str, **options: Any) -> dict[str, Tensor]:
        embeds, _, mask, *_ = pipeline.encode_prompt(
            prompt,
            device='cpu',
            do_classifier_free_guidance=False,
            max_sequence_length=options['max_sequence_length'],
        )
        return {'prompt_embeds': embeds, 'prompt_attention_mask': mask}

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        embeds, mask = condition['prompt_embeds'], condition['prompt_attention_mask']
        packed = pack(latent)
        image_mask = torch.ones(packed.shape[:2], dtype=torch.bool, device=latent.device)
        transformer(
            packed,
            encoder_hidden_states=embeds,
            timestep=model_time.to(latent.dtype) / 1000,
            img_ids=position_ids(self.grid(latent), latent),
            txt_ids=torch.zeros(embeds.shape[1], 3, device=latent.device),
            # Stays of the embeddings' dtype, as in the pipeline: added to the attention's logits.
            attention_mask=torch.cat([mask, image_mask], dim=1),
        )

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        if feature == 'output' and index >= self.stack_lengths[0]:
            return Tap(self.block(transformer, index), last_tokens)
        return super().tap(transformer, index, feature)
