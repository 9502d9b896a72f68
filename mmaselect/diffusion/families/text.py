# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What the families that a prompt conditions have in common."""

from __future__ import annotations

import gc
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import diffusers
import torch
from diffusers.utils import is_bs4_available, is_ftfy_available
from torch import Tensor, nn

from mmaselect.diffusion.condition import cached_embedding, encoder_identity
from mmaselect.diffusion.families.base import Family
from mmaselect.diffusion.loading import PipelineSource
from mmaselect.install import install_hint

# Parts of pipelines that have no say in what a prompt is embedded to, and are not loaded.
LEFT_OUT = ('transformer', 'vae', 'image_encoder', 'feature_extractor', 'safety_checker')


def require_prompt_cleaners(
    title: str, packages: tuple[str, ...] = ('beautifulsoup4', 'ftfy')
) -> None:
    """Raise an ImportError that names a missing package which cleans prompts of markup and links.

    The pipelines only log a line then, and leave them in.
    """
    installed = {'beautifulsoup4': is_bs4_available(), 'ftfy': is_ftfy_available()}
    for package in packages:
        if not installed[package]:
            raise ImportError(
                f'{title} cleans its prompts with {package}, which is not installed: '
                f'`pip install {package}`, or all that prompts need by '
                f'{install_hint("text")}'
            )


def embed_cleaned(pipeline: Any, prompt: str, title: str) -> tuple[Tensor, Tensor]:
    """Embedding and mask of a prompt, cleaned of markup and links as the pipeline's call does it.

    Raises:
        ImportError: If a package that cleans prompts is missing.
    """
    require_prompt_cleaners(title)
    states, mask, *_ = pipeline.encode_prompt(
        prompt,
        do_classifier_free_guidance=False,
        device=torch.device('cpu'),
        clean_caption=True,
    )
    return states, mask


class TextFamily(Family):
    """A transformer that a prompt conditions.

    The prompt is embedded once, on the CPU, by ``encode_prompt`` of the model's own pipeline, and
    kept in a file (see ``mmaselect/diffusion/condition.py``); a second start never loads the text
    encoders. Subclasses set :attr:`pipeline_class` and write :meth:`embed`.

    The user's ``condition`` is None (the empty prompt), a prompt, or a dict with ``prompt`` and
    the options of the family: ``condition=dict(prompt='a bird', t5=True)``.
    """

    uses_text = True
    #: Name of the diffusers pipeline that embeds the prompt.
    pipeline_class: ClassVar[str]
    #: Raised when :meth:`embed` changes: what an older version embedded is then not read again.
    embedding_format: ClassVar[int] = 1

    @property
    def condition_options(self) -> Mapping[str, Any]:
        """What `condition=dict(...)` takes next to `prompt`, with defaults of JSON's types."""
        return {}

    # With both kinds of further arguments, type checkers let subclasses name their own.
    @abstractmethod
    def embed(self, pipeline: Any, prompt: str, *_: Any, **options: Any) -> dict[str, Tensor]:
        """Embed a prompt with the pipeline's own ``encode_prompt``, on the CPU.

        Args:
            pipeline: An instance of :attr:`pipeline_class` without transformer and VAE, unless
                :meth:`pipeline_parts` says otherwise, in the transformer's dtype.
            prompt: May be empty.
            options: :attr:`condition_options` with the user's values.

        Returns:
            dict: What :meth:`run` gets as ``condition``, each tensor with a batch dimension of 1.
        """

    def pipeline_name(self, source: PipelineSource) -> str:
        """Pipeline class to use; for transformers that several pipelines share, read its index."""
        return self.pipeline_class

    def pipeline_parts(self, source: PipelineSource, options: Mapping[str, Any]) -> dict[str, Any]:
        """Parts of the pipeline that are not loaded: None, or what stands in for them."""
        return dict.fromkeys(LEFT_OUT)

    def options_identity(self, options: Mapping[str, Any], source: PipelineSource) -> Any:
        """What an embedding depends on of the options: as they are, unless one names files."""
        return options

    def late_parts(
        self, source: PipelineSource, options: Mapping[str, Any], dtype: torch.dtype
    ) -> dict[str, Any]:
        """Parts of the pipeline that lie elsewhere, loaded only when a prompt is embedded."""
        return {}

    def weightless_transformer(self) -> nn.Module:
        """The transformer's config without its weights, for pipelines that look things up there."""
        cls = getattr(diffusers, self.transformer_class)
        with torch.device('meta'):
            return cls.from_config({**self.config, **self.build_overrides(1)})

    def parse_condition(self, spec: Any) -> tuple[str, dict[str, Any]]:
        """The prompt and the options that a user's ``condition`` stands for.

        Raises:
            TypeError: If it is neither None, a prompt nor a dict, or an option has a wrong type.
            ValueError: If the dict has unknown keys.
        """
        spec = {'prompt': spec or ''} if spec is None or isinstance(spec, str) else spec
        allowed = {'prompt': '', **self.condition_options}
        if not isinstance(spec, Mapping):
            raise TypeError(
                f'condition {spec!r} does not fit {self.title}, which is conditioned by a prompt: '
                f'give None for the empty prompt, a prompt, or a dict with {self._signature()}'
            )
        unknown = [key for key in spec if key not in allowed]
        if unknown:
            raise ValueError(
                f'condition has unknown keys {unknown} for {self.title}: it takes '
                f'{self._signature()}'
            )
        values = {**allowed, **spec}
        for name, default in allowed.items():
            wanted = (int, float) if isinstance(default, float) else type(default)
            is_bool = isinstance(values[name], bool)
            if not isinstance(values[name], wanted) or is_bool != isinstance(default, bool):
                raise TypeError(
                    f'condition {name}={values[name]!r} does not fit {self.title}: it takes a '
                    f'{type(default).__name__}, for example {default!r}'
                )
            values[name] = type(default)(values[name])
        return values.pop('prompt'), values

    def _signature(self) -> str:
        return ', '.join(f'{k}={v!r}' for k, v in {'prompt': '', **self.condition_options}.items())

    def condition_in_words(self, spec: Any) -> str:
        prompt, options = self.parse_condition(spec)
        # Texts are places of further encoders, which may be moved.
        told = {name: value for name, value in options.items() if not isinstance(value, str)}
        return repr({'prompt': prompt, **told}) if told else repr(prompt)

    def prepare_condition(
        self, spec: Any, source: PipelineSource, dtype: torch.dtype
    ) -> dict[str, Tensor]:
        prompt, options = self.parse_condition(spec)
        source = source.pipeline
        name = self.pipeline_name(source)
        index = source.index()
        present = [key for key, value in index.items() if isinstance(value, list) and value[0]]
        replaced = {k: v for k, v in self.pipeline_parts(source, options).items() if k in index}
        encoders = [k for k in present if k != 'scheduler' and k not in replaced]
        identity = {
            'format': self.embedding_format,
            'pipeline': name,
            'encoders': encoder_identity(source, encoders),
            'prompt': prompt,
            'options': self.options_identity(options, source),
            'dtype': str(dtype),
        }
        tensors = cached_embedding(
            f'{name}-{prompt[:40]}',
            identity,
            lambda: self._embed(source, name, replaced, encoders, prompt, options, dtype),
        )
        return {
            key: value.to(dtype) if value.is_floating_point() else value
            for key, value in tensors.items()
        }

    def _embed(
        self,
        source: PipelineSource,
        name: str,
        replaced: dict[str, Any],
        encoders: list[str],
        prompt: str,
        options: dict[str, Any],
        dtype: torch.dtype,
    ) -> dict[str, Tensor]:
        parts = [k for k, value in source.index().items() if isinstance(value, list) and value[0]]
        folder = source.folder([part for part in parts if part not in replaced])
        replaced = {**replaced, **self.late_parts(source, options, dtype)}
        try:
            pipeline = getattr(diffusers, name).from_pretrained(
                str(folder), torch_dtype=dtype, **replaced, **source.hub_kwargs
            )
        except (OSError, ValueError, ImportError) as error:
            raise RuntimeError(
                f'pretrained={source.name!r}: the prompt {prompt!r} must be embedded once by '
                f'{name}, and its parts {", ".join(encoders)} could not be loaded ({error}). '
                f'Complete the download, or install what is missing '
                f'by {install_hint("text")}; later starts need neither'
            ) from error
        with torch.no_grad():
            tensors = self.embed(pipeline, prompt, **options)
        wrong = {key: tuple(value.shape) for key, value in tensors.items() if len(value) != 1}
        if wrong:
            raise RuntimeError(f'{name} embedded one prompt to batches of another size: {wrong}')
        del pipeline
        gc.collect()
        return {key: value.detach().cpu().clone() for key, value in tensors.items()}
