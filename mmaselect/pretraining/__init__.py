# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Making a DiT of one's own: what ``tools/pretrain_dit.py`` is built from.

Knows torch, diffusers, accelerate and ``mmaselect.diffusion``; nothing of OpenMMLab, of
selection or of models.
"""
