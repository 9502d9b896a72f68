# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Writing a pipeline folder, and files, so that a reader never meets half of one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import DiTPipeline, DiTTransformer2DModel, ModelMixin
from diffusers.utils import logging

from mmaselect.pretraining.objective import Objective


def replace_folder(folder: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` fill a new folder, then put it in the place of ``folder``.

    Between the two renames there is an instant without ``folder``; there is none with half of it.
    """
    new, old = (folder.with_name(f'.{folder.name}.{suffix}') for suffix in ('new', 'old'))
    for left_over in (new, old):
        shutil.rmtree(left_over, ignore_errors=True)
    write(new)
    if folder.exists():
        os.replace(folder, old)
    os.replace(new, folder)
    shutil.rmtree(old, ignore_errors=True)


def save_pipeline(
    folder: Path,
    model: DiTTransformer2DModel,
    objective: Objective,
    classes: Sequence[str],
    vae: ModelMixin | None = None,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Save a ``DiTPipeline`` folder in place of what is there.

    A model of pixels has no ``vae/``; stock diffusers then loads it by
    ``DiTPipeline.from_pretrained(folder, vae=None)``.

    Args:
        folder: The pipeline's folder.
        model: The transformer; unchanged.
        objective: Its scheduler is saved.
        classes: Class names, for ``id2label``.
        vae: Saved too, where the model works on latents.
        dtype: Precision of the transformer's weights.
    """
    verbosity = logging.get_verbosity()
    # It would warn that no VAE "cannot be saved", and of float32 modules of which there are none.
    logging.set_verbosity_error()
    try:
        saved = DiTTransformer2DModel.from_config(model.config)
        saved.load_state_dict(model.state_dict())
        pipeline = DiTPipeline(transformer=saved.to(dtype), vae=vae, scheduler=objective.scheduler)
        # DiTPipeline reads this from its model_index.json and does not write it there itself.
        pipeline.register_to_config(id2label={str(i): name for i, name in enumerate(classes)})
        replace_folder(folder, pipeline.save_pretrained)
    finally:
        logging.set_verbosity(verbosity)
