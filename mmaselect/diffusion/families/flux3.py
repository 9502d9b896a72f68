# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""FLUX.3: blocks of the image alone, then blocks that it shares with the text.

There is no pipeline of diffusers that calls it, but blocks that one is put together from.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

from mmaselect.diffusion.condition import cached_embedding, encoder_identity
from mmaselect.diffusion.families.base import FEATURES, POST_FEATURES, Tap, whole_output
from mmaselect.diffusion.families.lookup import register_family
from mmaselect.diffusion.families.text import TextFamily
from mmaselect.diffusion.families.tokens import last_tokens, member, usual_taps
from mmaselect.diffusion.loading import PipelineSource
from mmaselect.diffusion.process import FlowMatchingProcess, ForwardProcess
from mmaselect.diffusion.single_file import OriginalLayout
from mmaselect.install import install_hint

_ENCODERS = ('text_encoder', 'tokenizer')
# Rows and columns are half a position apart.
_STEP = 0.5


@register_family
class Flux3Family(TextFamily):
    """``Flux3Transformer2DModel``, in a folder that ``Flux3ModularPipeline`` has saved.

    Blocks are counted through both stacks: of the first, those that the image has for itself, and
    not the text's next to them; in those of the second the text's tokens come first. Where there is
    no ``scheduler/``, as none is saved, noise levels are those that the pipeline's block sets.

    Args:
        config: The transformer's config.

    Raises:
        ValueError: If it is that of the distilled model.
    """

    transformer_class = 'Flux3Transformer2DModel'
    title = 'FLUX.3'
    pipeline_class = 'Flux3ModularPipeline'
    min_diffusers = '0.42'
    features = FEATURES + POST_FEATURES
    stacks = (('num_layers', 'mode_blocks'), ('num_single_layers', 'single_transformer_blocks'))
    original_layout = OriginalLayout('content_mode_blocks', 'single_blocks')

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__(config)
        if config.get('flow_map'):
            raise ValueError(
                f'this is a distilled {self.title} (flow_map=True), which is told where the next '
                f'step of a generation ends, and an image that is read has no next step: use the '
                f'one that it was distilled from'
            )

    @property
    def patch_size(self) -> int:
        return 1  # packed by the codec

    def trim(self, transformer: nn.Module, num_blocks: int) -> None:
        # Of reference images, of which there are none here.
        transformer.get_submodule('mode_blocks')['image_cond'] = nn.ModuleList()  # type: ignore[operator]

    def build_process(self, source: PipelineSource) -> ForwardProcess:
        try:
            return super().build_process(source)
        except FileNotFoundError:
            step = diffusers.Flux3AutoBlocks().sub_blocks['denoise'].sub_blocks['text2image']
            return FlowMatchingProcess({'shift': step.sub_blocks['set_timesteps'].shift})

    def block(self, transformer: nn.Module, index: int) -> Any:
        if index < self.stack_lengths[0]:
            return transformer.get_submodule(f'mode_blocks.image.{index}')
        return super().block(transformer, index)

    def embed(self, pipeline: Any, prompt: str) -> dict[str, Tensor]:
        return {'prompt_embeds': pipeline(prompt=prompt, output='prompt_embeds')}

    def prepare_condition(
        self, spec: Any, source: PipelineSource, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        prompt, _ = self.parse_condition(spec)
        source = source.pipeline
        identity = {
            'format': self.embedding_format,
            'pipeline': self.pipeline_class,
            'encoders': encoder_identity(source, _ENCODERS),
            'prompt': prompt,
            'dtype': str(dtype),
        }
        tensors = cached_embedding(
            f'{self.pipeline_class}-{prompt[:40]}',
            identity,
            lambda: self._embed_by_its_block(source, prompt, dtype),
        )
        return {key: value.to(dtype) for key, value in tensors.items()}

    def _embed_by_its_block(
        self, source: PipelineSource, prompt: str, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        step = diffusers.Flux3AutoBlocks().sub_blocks['text_encoder']
        folder = str(source.folder(_ENCODERS))
        # The index of a pipeline on the hub names the hub, where diffusers would look once more.
        where = {} if source.is_local else {'pretrained_model_name_or_path': folder}
        try:
            pipeline = step.init_pipeline(folder)
            pipeline.load_components(names=list(_ENCODERS), torch_dtype=dtype, **where)
            if None in (pipeline.text_encoder, pipeline.tokenizer):
                raise OSError('nothing is there')
        except (OSError, ValueError, ImportError) as error:
            raise RuntimeError(
                f'pretrained={source.name!r}: the prompt {prompt!r} must be embedded once, and '
                f'{", ".join(_ENCODERS)} could not be loaded ({error}). Complete the download, or '
                f'install what is missing by {install_hint("text")}; later starts need '
                f'neither'
            ) from error
        with torch.no_grad():
            return {k: v.cpu().clone() for k, v in self.embed(pipeline, prompt).items()}

    def run(
        self,
        transformer: nn.Module,
        latent: Tensor,
        model_time: Tensor,
        condition: Mapping[str, Tensor],
    ) -> None:
        embeds = condition['prompt_embeds']
        rows, columns = (
            torch.arange(side, dtype=torch.float32, device=latent.device)
            for side in self.grid(latent)
        )
        places = torch.arange(embeds.shape[1], dtype=torch.float32, device=latent.device)
        zero = places.new_zeros(1)
        # (time, row, column, place in the prompt)
        transformer(
            latent.flatten(2).transpose(1, 2),
            encoder_hidden_states=embeds,
            timestep=(model_time / 1000).to(latent.dtype),
            img_ids=torch.cartesian_prod(zero, rows * _STEP, columns * _STEP, zero),
            txt_ids=torch.cartesian_prod(zero, zero, zero, places),
        )

    def tap(self, transformer: nn.Module, index: int, feature: str) -> Tap:
        block = self.block(transformer, index)
        if index < self.stack_lengths[0]:
            return usual_taps(block, block.attn, whole_output)[feature]
        # A block returns (text, image).
        return usual_taps(block, block.attn, last_tokens, output=member(1))[feature]
