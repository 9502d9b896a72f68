# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""One short file per transformer class. Importing the package registers them all."""

# One import a line, so that adding a family is adding a line; each registers itself.
import mmaselect.diffusion.families.auraflow
import mmaselect.diffusion.families.bria
import mmaselect.diffusion.families.bria_fibo
import mmaselect.diffusion.families.bria_fibo2
import mmaselect.diffusion.families.chroma
import mmaselect.diffusion.families.cogview3_plus
import mmaselect.diffusion.families.cogview4
import mmaselect.diffusion.families.cosmos
import mmaselect.diffusion.families.dit
import mmaselect.diffusion.families.ernie_image
import mmaselect.diffusion.families.flux
import mmaselect.diffusion.families.flux2
import mmaselect.diffusion.families.flux3
import mmaselect.diffusion.families.glm_image
import mmaselect.diffusion.families.hidream
import mmaselect.diffusion.families.hunyuan_dit
import mmaselect.diffusion.families.hunyuan_image
import mmaselect.diffusion.families.ideogram4
import mmaselect.diffusion.families.kandinsky5
import mmaselect.diffusion.families.kandinsky6
import mmaselect.diffusion.families.krea2
import mmaselect.diffusion.families.longcat_image
import mmaselect.diffusion.families.lumina2
import mmaselect.diffusion.families.lumina_next
import mmaselect.diffusion.families.nucleus_image
import mmaselect.diffusion.families.omnigen
import mmaselect.diffusion.families.ovis_image
import mmaselect.diffusion.families.pixart
import mmaselect.diffusion.families.prx
import mmaselect.diffusion.families.qwen_image
import mmaselect.diffusion.families.qwen_image21
import mmaselect.diffusion.families.sana
import mmaselect.diffusion.families.sd3
import mmaselect.diffusion.families.sit
import mmaselect.diffusion.families.wan
import mmaselect.diffusion.families.z_image  # noqa: F401
from mmaselect.diffusion.families.base import (
    FEATURES,
    POST_FEATURES,
    Family,
    Tap,
    whole_output,
)
from mmaselect.diffusion.families.lookup import family_of, known_families, register_family
from mmaselect.diffusion.families.text import TextFamily

__all__ = [
    'FEATURES',
    'POST_FEATURES',
    'Family',
    'Tap',
    'TextFamily',
    'family_of',
    'known_families',
    'register_family',
    'whole_output',
]
