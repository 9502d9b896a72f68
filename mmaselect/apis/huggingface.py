# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A frozen model with the face of ``AutoBackbone``, for what is written for Hugging Face's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mmaselect.apis.frozen_module import FrozenModule
from mmaselect.apis.reader import Calibration, Timesteps
from mmaselect.apis.sharing import SharedPick
from mmaselect.checks import any_spelling, is_sequence, shorten, three_numbers
from mmaselect.diffusion import ModelSource
from mmaselect.diffusion.pixel_gate import PixelGate
from mmaselect.install import install_hint

if TYPE_CHECKING:
    from transformers.modeling_outputs import BackboneOutput


ADVICE = (
    'Set image_mean and image_std to those of the image processor: `processor.image_mean`, '
    '`processor.image_std`; 0 and 1 where it leaves images as they are, from 0 to 1'
)
#: Arguments of ``AutoBackbone`` that say nothing here.
OF_AUTO = (
    *('adapter_kwargs', 'code_revision', 'force_download', 'proxies', 'subfolder'),
    *('trust_remote_code', '_commit_hash'),
)
#: What says where the files of a pick are found on the hub.
HUB_NAMES = ('revision', 'token', 'cache_dir', 'local_files_only')


class TransformersBackbone(FrozenModule):
    """A module that is called, and answers, as ``AutoBackbone.from_pretrained(...)`` does.

    Its stages are the transformer's blocks: ``stage_names`` is ``['block0', 'block1', ...]``, and
    ``out_indices`` are places in it. It can stand where a model of ``transformers`` has its
    ``backbone``. It is frozen: no parameter is trained, and it stays in eval mode.

    Args:
        pretrained: Which model, as in :class:`~mmaselect.FeatureExtractor`.
        timestep: Where to read: a number, a :class:`SelectionResult`, ``'auto'``, a list, or a
            dict, as in :class:`~mmaselect.FeatureExtractor`.
        out_indices: Blocks to read, in ascending order, negative ones counted from the end; the
            family's default if None.
        out_features: The same by their names; one of the two at most.
        feature: ``'query'``, ``'key'``, ``'value'``, ``'attention'`` or ``'output'``.
        image_mean: What the image processor subtracted, of images from 0 to 1; one number, or one
            for each channel. The model's own range is restored from it. 0.5 if None.
        image_std: Standard deviation that it divided by. 0.5 if None.
        dtype: Precision of the frozen weights; maps are float32.
        seed: Seed of the noise, which depends on it and on the latent's shape alone.
        calibration: Images that ``'auto'`` selects on, as in :class:`~mmaselect.FeatureExtractor`.
        selection: How it selects, as in :class:`~mmaselect.FeatureExtractor`.
        device: Where the model is put, and where a timestep is selected.
        condition: None for the empty condition; a class label or a prompt otherwise.
        flat: As in :class:`~mmaselect.FeatureExtractor`.

    Attributes:
        stage_names (list[str]): Stage names of all blocks.
        out_features (list[str]): Names of the stages that are read.
        out_indices (list[int]): Their places.
        channels (list[int]): Channels of each map.

    Shape:
        - Input: (B, 3, H, W), as the image processor gives it; any H and W.
        - ``.feature_maps``: tuple of (B, C, ceil(H / stride), ceil(W / stride)).

    Raises:
        ImportError: If ``transformers`` is not installed.
        ValueError: If a setting is out of range.

    Example:
        >>> import torch
        >>> from mmaselect.apis import TransformersBackbone
        >>> backbone = TransformersBackbone.from_pretrained(
        ...     'mmaselect://dit_cifar10', timestep=75, out_indices=[1, 3]
        ... )
        >>> backbone.out_features, backbone.channels
        (['block1', 'block3'], [224, 224])
        >>> outputs = backbone(torch.zeros(2, 3, 32, 48))
        >>> [tuple(one.shape) for one in outputs.feature_maps]
        [(2, 224, 8, 12), (2, 224, 8, 12)]
    """

    @any_spelling
    def __init__(
        self,
        pretrained: str | Path | Mapping[str, Any] | ModelSource,
        timestep: Timesteps,
        out_indices: Sequence[int] | int | str | None = None,
        out_features: Sequence[str] | None = None,
        feature: str | Sequence[str] = 'query',
        image_mean: float | Sequence[float] | None = None,
        image_std: float | Sequence[float] | None = None,
        dtype: str | torch.dtype = 'auto',
        seed: int = 0,
        calibration: Calibration | None = None,
        selection: Mapping[str, Any] | str | None = None,
        device: str | torch.device = 'cpu',
        condition: Any = None,
        **flat: Any,
    ) -> None:
        _output_class()
        is_sure = image_mean is not None and image_std is not None
        mean = three_numbers('image_mean', 0.5 if image_mean is None else image_mean)
        std = three_numbers('image_std', 0.5 if image_std is None else image_std, positive=True)
        gate = PixelGate(mean, std, 1, advice=ADVICE, is_sure=is_sure)
        blocks = _blocks(out_indices, out_features)
        super().__init__(
            pretrained, timestep, blocks, feature, dtype, seed, calibration, selection, device,
            condition, flat, gate,
        )  # fmt: skip
        given = dict(image_mean=image_mean, image_std=image_std)
        self._pixels = {
            name: [float(one) for one in found]
            for name, found in (('image_mean', mean), ('image_std', std))
            if given[name] is not None
        }
        self.stage_names = [f'block{number}' for number in range(self.dit.num_blocks)]
        self.out_indices = self.map_blocks
        if self.out_indices != sorted(set(self.out_indices)):
            raise ValueError(
                f'out_indices must be different and in ascending order, as in transformers; got '
                f'{self.out_indices}'
            )
        self.out_features = [self.stage_names[index] for index in self.out_indices]
        self.channels = self.feature_info.channels()

    @classmethod
    def from_pretrained(
        cls,
        pretrained: str | Path | Mapping[str, Any] | ModelSource,
        *,
        config: Any = None,
        **kwargs: Any,
    ) -> TransformersBackbone:
        """The class itself in the words of ``transformers``, or what ``save_pretrained`` wrote.

        Args:
            pretrained: The model, if ``timestep`` is given; else the folder, or hub id, of a pick
                that was saved.
            config: What ``AutoBackbone`` has read of the pick.
            kwargs: Further arguments of the class, such as ``timestep`` and ``out_indices``. Of a
                pick, those that are not a part of it, and ``revision``, ``token``, ``cache_dir``
                and ``local_files_only``.

        Raises:
            FileNotFoundError: If there is no such model or pick.
            ValueError: If what is there is not a pick, or an argument is a part of it.
        """
        if 'timestep' in kwargs:
            return cls(pretrained, **kwargs)
        if not isinstance(pretrained, (str, Path)):
            raise ValueError('timestep is missing: where is the model to be read?')
        if config is not None:  # AutoBackbone hands on what it was called with
            kwargs = {name: value for name, value in kwargs.items() if name not in OF_AUTO}
        given = {name: kwargs.pop(name) for name in HUB_NAMES if name in kwargs}
        return cls(**SharedPick.load(pretrained, **given).arguments(kwargs, 'out_indices'))

    @classmethod
    def _from_config(cls, config: Any, **kwargs: Any) -> TransformersBackbone:
        """What ``AutoBackbone.from_config`` calls: models with a ``backbone_config`` do so."""
        pick = SharedPick.of_config(config.to_dict())
        return cls(**pick.arguments(kwargs, 'out_indices'))

    @property
    def config(self) -> Any:
        """The config of ``transformers``: what ``config.json`` of a saved backbone holds."""
        from mmaselect.apis.auto_backbone import backbone_config

        return backbone_config(self)

    def shared_pick(self) -> SharedPick:
        """What ``save_pretrained`` writes."""
        pick = super().shared_pick()
        if not self._pixels:
            return pick
        return replace(pick, settings=dict(pick.settings, **self._pixels))

    @property
    def out_feature_channels(self) -> dict[str, int]:
        """Channels of each stage that is read."""
        return dict(zip(self.out_features, self.channels, strict=True))

    def forward(
        self,
        pixel_values: Tensor,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        return_dict: bool | None = None,
    ) -> BackboneOutput | tuple[tuple[Tensor, ...]]:
        """Maps of a batch.

        Args:
            pixel_values: See the class.
            output_hidden_states: Must not be True: a pass ends at the deepest block that is read.
            output_attentions: Must not be True: attention is computed without its weights.
            return_dict: False for a plain tuple.

        Returns:
            BackboneOutput: With ``feature_maps``.

        Raises:
            ValueError: If hidden states or attentions are asked for.
        """
        for name, asked in (
            ('output_hidden_states', output_hidden_states),
            ('output_attentions', output_attentions),
        ):
            if asked:
                raise ValueError(
                    f"{name}=True: there are feature maps alone. Read blocks with feature='output' "
                    f'by out_indices'
                )
        maps = tuple(self._read(pixel_values))
        if return_dict is not None and not return_dict:
            return (maps,)
        return _output_class()(feature_maps=maps)

    def forward_with_filtered_kwargs(self, *args: Any, **kwargs: Any) -> Any:
        """What models of ``transformers`` call; the same as a call."""
        return self(*args, **kwargs)


def _output_class() -> type[BackboneOutput]:
    try:
        from transformers.modeling_outputs import BackboneOutput
    except ImportError as error:
        raise ImportError(
            'TransformersBackbone gives what transformers defines, which is not installed. Run: '
            + install_hint('text')
        ) from error
    return BackboneOutput


def _blocks(
    out_indices: Sequence[int] | int | str | None, out_features: Sequence[str] | None
) -> Sequence[int] | int | str | None:
    """Numbers of blocks, from either of the two ways to say them."""
    if out_features is None:
        return out_indices
    if out_indices is not None:
        raise ValueError('give out_indices or out_features, not both')
    names = list(out_features) if is_sequence(out_features) else []
    numbers = [name.removeprefix('block') if isinstance(name, str) else '' for name in names]
    if not names or not all(
        number.isdecimal() and name == f'block{number}'
        for number, name in zip(numbers, names, strict=True)
    ):
        raise ValueError(
            f"out_features must be a list of names such as 'block3', got {shorten(out_features)}"
        )
    return [int(number) for number in numbers]
