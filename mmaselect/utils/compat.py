# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Which OpenMMLab distributions are installed: the original or the maintained ``onedl-*`` ones.

Both give the same modules (``mmengine``, ``mmcv``, ``mmseg``, ``mmpretrain``), so either works, and
both at once overwrite each other's files.
"""

from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from types import MappingProxyType

#: Module -> the distributions that provide it, the maintained one first.
DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        'mmengine': ('onedl-mmengine', 'mmengine', 'mmengine-lite'),
        'mmcv': ('onedl-mmcv', 'mmcv', 'mmcv-lite', 'mmcv-full'),
        'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
        'mmpretrain': ('onedl-mmpretrain', 'mmpretrain'),
    }
)
#: The toolboxes that train our models, by the ``default_scope`` of their configs.
TOOLBOXES = ('mmseg', 'mmpretrain')

INSTALL_HINT = 'pip install "mmaselect[onedl]"'


def installed_distributions(module: str) -> list[str]:
    """The installed distributions that provide an OpenMMLab module.

    Args:
        module: ``'mmengine'``, ``'mmcv'``, ``'mmseg'`` or ``'mmpretrain'``.

    Returns:
        list[str]: Their names, the maintained one first; empty where none is installed.
    """
    return [name for name in DISTRIBUTIONS[module] if _is_installed(name)]


def check_toolboxes(*toolboxes: str) -> None:
    """Stop with advice if the OpenMMLab packages cannot work as they are installed.

    Args:
        *toolboxes: The toolboxes that are needed, of ``'mmseg'`` and ``'mmpretrain'``.

    Raises:
        ImportError: If one is missing, or if two distributions provide the same module.
    """
    for module in ('mmengine', 'mmcv', *toolboxes):
        found = installed_distributions(module)
        # A checkout on PYTHONPATH is no distribution, and works.
        if not found and find_spec(module) is None:
            raise ImportError(
                f'`{module}` is needed and none of {", ".join(DISTRIBUTIONS[module])} is '
                f'installed. Run: {INSTALL_HINT}'
            )
        if len(found) > 1:
            raise ImportError(
                f'{" and ".join(found)} are installed together, and both provide `{module}`: '
                f'they overwrite each other. Uninstall every one of them, then install one stack: '
                f'pip uninstall -y {" ".join(_all_installed())} && {INSTALL_HINT}'
            )


def map_config_scopes() -> None:
    """Make bases like ``'mmseg::...'`` (and ``'mmaselect::...'``) find what is installed.

    MMEngine looks a scope's distribution up in a table that knows only the original names. Its
    entries are set to what is installed; nothing else of MMEngine is touched.
    """
    from mmengine.config.utils import MODULE2PACKAGE

    for toolbox in TOOLBOXES:
        for name in installed_distributions(toolbox)[:1]:
            MODULE2PACKAGE[toolbox] = name
    MODULE2PACKAGE['mmaselect'] = 'mmaselect'


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _all_installed() -> list[str]:
    return [name for module in DISTRIBUTIONS for name in installed_distributions(module)]
