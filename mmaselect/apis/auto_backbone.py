# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``AutoBackbone`` of ``transformers`` knows a saved backbone, by ``model_type``.

``AutoBackbone.from_pretrained`` takes hub ids alone. For a folder:
``AutoBackbone.from_config(AutoConfig.from_pretrained(FOLDER))``. Imported where ``transformers`` is
installed.
"""

from __future__ import annotations

from typing import Any

from transformers import AutoBackbone, AutoConfig, PretrainedConfig

from mmaselect.apis.huggingface import TransformersBackbone
from mmaselect.apis.sharing import MODEL_TYPE


class MMASelectConfig(PretrainedConfig):
    """Config of a :class:`~mmaselect.apis.TransformersBackbone`: the pick, without the selection.

    Its entries are the fields of :class:`~mmaselect.apis.sharing.SharedPick`.
    """

    model_type = MODEL_TYPE

    @property
    def out_indices(self) -> list[int]:
        """Blocks that are read."""
        return list(self.blocks)

    @property
    def out_features(self) -> list[str]:
        """Names of the stages that are read."""
        return [f'block{block}' for block in self.blocks]


def backbone_config(backbone: TransformersBackbone) -> MMASelectConfig:
    """The config of a backbone; ``AutoBackbone.from_config`` builds it again."""
    settings: dict[str, Any] = backbone.shared_pick().config()
    settings.pop('model_type')
    return MMASelectConfig(**settings, stage_names=backbone.stage_names, channels=backbone.channels)


def register() -> None:
    """Make ``AutoConfig`` and ``AutoBackbone`` know the class."""
    AutoConfig.register(MODEL_TYPE, MMASelectConfig, exist_ok=True)
    AutoBackbone.register(MMASelectConfig, TransformersBackbone, exist_ok=True)
