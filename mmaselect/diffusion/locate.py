# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What a user's name of a model stands for: a shipped one, a folder, a file, or a hub id."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

from mmaselect.checks import check_path

#: Prefix of the models that ship with the package.
SHIPPED_PREFIX = 'mmaselect://'
WEIGHTS_DIR = Path(__file__).resolve().parents[1] / 'weights'

LAYOUT_HELP = (
    "expected diffusers' pipeline layout: transformer/config.json with its weights, "
    'scheduler/scheduler_config.json and, for a model that works on latents, '
    'vae/config.json with its weights'
)

#: Files of weights, by how their names end: pickled ones, and the two formats that hold no code.
PICKLED = ('.pt', '.pth', '.ckpt', '.bin')
SAFETENSORS, GGUF = '.safetensors', '.gguf'
WEIGHT_SUFFIXES = (*PICKLED, SAFETENSORS, GGUF)

#: How the weights of a model of diffusers are named; text encoders have `model` there.
WEIGHTS_NAME = 'diffusion_pytorch_model'


def variant_of(file: str) -> str:
    """The variant in the name of a file of weights, or of an index of them; empty without one.

    Example:
        >>> variant_of('diffusion_pytorch_model.fp16-00001-of-00002.safetensors')
        'fp16'
        >>> variant_of('diffusion_pytorch_model.safetensors.index.json')
        ''
    """
    words = re.sub(r'-\d+-of-\d+', '', Path(file).name).split('.')[1:]
    return '.'.join(w for w in words if w not in ('safetensors', 'bin', 'index', 'json'))


def weights_of(files: Iterable[str], variant: str | None) -> list[str]:
    """The files of weights in a folder that diffusers reads: of a variant, or of no variant.

    Args:
        files: Names of files in the folder.
        variant: The variant; None for none.

    Returns:
        list: Their names, with those of indices; of safetensors if there are any.
    """
    found = [
        file
        for file in files
        if re.search(r'\.(safetensors|bin)(\.|$)', file) and variant_of(file) == (variant or '')
    ]
    return sorted([file for file in found if '.safetensors' in file] or found)


def _shipped(argument: str, name: str) -> str:
    """Folder of a model that ships with the package."""
    shipped_name = name.removeprefix(SHIPPED_PREFIX)
    folder = WEIGHTS_DIR / shipped_name
    # A name, not a path: '../x' and '/x' would leave the package.
    if (
        not re.fullmatch(r'[\w-]+', shipped_name)
        or not (folder / 'transformer' / 'config.json').is_file()
    ):
        shipped = sorted(p.parents[1].name for p in WEIGHTS_DIR.glob('*/transformer/config.json'))
        raise FileNotFoundError(
            f'{argument}={name!r} does not ship with mmaselect. Shipped models: '
            f'{", ".join(SHIPPED_PREFIX + s for s in shipped) or "none"}'
        )
    return str(folder)


def weights_file(argument: str, name: str | Path) -> Path | None:
    """The file of weights that a name stands for; None if it stands for something else.

    Args:
        argument: The argument, for messages.
        name: What the user wrote.

    Raises:
        FileNotFoundError: If it ends as a file of weights does, and there is none.
        ValueError: If it is a file of another kind.
    """
    text = str(check_path(argument, name))
    if text.startswith(SHIPPED_PREFIX):
        return None
    file = Path(text).expanduser()
    known = file.suffix.lower() in WEIGHT_SUFFIXES
    if file.is_file():
        if not known:
            raise ValueError(
                f'{argument}={text!r} is a file, and none of weights: it must end in one of '
                f'{", ".join(WEIGHT_SUFFIXES)}'
            )
        return file
    if known and not file.is_dir():
        raise FileNotFoundError(
            f'{argument}={text!r}: there is no such file. A file on the hub must be downloaded '
            f'first; `hf download ORGANIZATION/NAME FILE` prints where it then lies'
        )
    return None


def resolve_folder(argument: str, name: str | Path) -> str:
    """A local folder, or a hub id, from what the user wrote.

    Args:
        argument: The argument, for messages.
        name: What the user wrote.

    Raises:
        FileNotFoundError: If it reads like a path and there is no such folder.
    """
    text = str(check_path(argument, name))
    if text.startswith(SHIPPED_PREFIX):
        return _shipped(argument, text)
    folder = Path(text).expanduser()
    if folder.is_dir():
        return str(folder)
    # A hub id is 'name' or 'organization/name'; anything else can only be meant as a path.
    if text.startswith(('/', '.', '~')) or text.count('/') != 1 or '\\' in text:
        raise FileNotFoundError(
            f'{argument}={text!r}: there is no such folder. Give a hub id such as '
            f"'facebook/DiT-XL-2-256', a model that ships with mmaselect such as "
            f"'{SHIPPED_PREFIX}dit_cifar10', or a local folder; {LAYOUT_HELP}{_models_meant(text)}"
        )
    return text


def _models_meant(text: str) -> str:
    """For the end of a message: published models whose names are close."""
    from mmaselect.diffusion.families import known_families

    def folded(name: str) -> str:
        return re.sub(r'[^a-z0-9]', '', name.lower())

    names = [model.name for family in known_families().values() for model in family.published]
    wanted = folded(re.sub(r'^sd(?=[-\d])', 'stable-diffusion-', text.lower()))
    near = [name for name in names if len(wanted) >= 3 and wanted in folded(name)]
    if not near:
        bases = {name.rpartition('/')[2].lower(): name for name in names}
        near = [bases[one] for one in difflib.get_close_matches(text.lower(), bases, n=2)]
    return f'. Is {" or ".join(map(repr, near[:3]))} meant?' if near else ''


def resolve_pretrained(pretrained: str | Path, argument: str = 'pretrained') -> str:
    """A pipeline's folder (checked) or its hub id from what the user wrote.

    Args:
        pretrained: What the user wrote.
        argument: The argument, for messages.

    Raises:
        FileNotFoundError: If it reads like a path and there is no such folder.
        ValueError: If it is a folder without a ``transformer/config.json``.
    """
    resolved = resolve_folder(argument, pretrained)
    folder = Path(resolved)
    if folder.is_dir() and not (folder / 'transformer' / 'config.json').is_file():
        found = sorted(p.name for p in folder.iterdir())[:10]
        raise ValueError(
            f'{argument}={str(pretrained)!r} is not a pipeline folder: it has no '
            f'transformer/config.json (found: {", ".join(found) or "nothing"}){_hint(folder)}; '
            f'{LAYOUT_HELP}'
        )
    return resolved


def _hint(folder: Path) -> str:
    """What a folder that is not a pipeline's may be instead."""
    if (folder / 'config.json').is_file():
        return (
            '. If it holds a transformer alone, name by base=... the pipeline that its scheduler '
            'and VAE come from'
        )
    if any(folder.glob('adapter_*')) or any(folder.glob('*lora*')):
        return '. If it holds a LoRA, give it as lora=..., next to the pipeline it was trained on'
    files = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in WEIGHT_SUFFIXES)
    return f'. If {files[0]} is what you mean, give the path of that file' if files else ''
