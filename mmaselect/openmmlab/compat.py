# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Which OpenMMLab distributions are installed: the original or the maintained ``onedl-*`` ones.

Both give the same modules (``mmengine``, ``mmcv``, ``mmseg``, ``mmpretrain``, ``mmdet``), so either
works, and both at once overwrite each other's files.
"""

from collections.abc import Mapping
from importlib import metadata
from importlib.util import find_spec
from types import MappingProxyType

from mmaselect.install import install_hint

#: Module -> the distributions that provide it, the maintained one first.
DISTRIBUTIONS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        'mmengine': ('onedl-mmengine', 'mmengine', 'mmengine-lite'),
        'mmcv': ('onedl-mmcv', 'mmcv', 'mmcv-lite', 'mmcv-full'),
        'mmseg': ('onedl-mmsegmentation', 'mmsegmentation'),
        'mmpretrain': ('onedl-mmpretrain', 'mmpretrain'),
        'mmdet': ('onedl-mmdetection', 'mmdet'),
    }
)
#: The toolboxes that train our models, by the ``default_scope`` of their configs.
TOOLBOXES = ('mmseg', 'mmpretrain', 'mmdet')

INSTALL_HINT = install_hint('onedl')
#: MMDetection is an extra, for either stack, and needs what wheels of MMCV on PyPI do not have.
DETECTION_HINT = f'{install_hint("openmmlab", "det")}; docs/detection.md has every step'


def installed_distributions(module: str) -> list[str]:
    """The installed distributions that provide an OpenMMLab module.

    Args:
        module: ``'mmengine'``, ``'mmcv'``, ``'mmseg'`` or ``'mmpretrain'``.

    Returns:
        list[str]: Their names, the maintained one first; empty where none is installed.
    """
    return [name for name in DISTRIBUTIONS[module] if _has(name)]


def is_installed() -> bool:
    """Whether MMEngine and MMCV, which all toolboxes build on, can be imported."""
    return all(find_spec(module) is not None for module in ('mmengine', 'mmcv'))


def check_toolboxes(*toolboxes: str) -> None:
    """Stop with advice if the OpenMMLab packages cannot work as they are installed.

    Args:
        *toolboxes: The toolboxes that are needed, of ``TOOLBOXES``.

    Raises:
        ImportError: If one is missing, if two distributions provide the same module, or if MMCV
            lacks the compiled ops that MMDetection needs.
    """
    for module in ('mmengine', 'mmcv', *toolboxes):
        found = installed_distributions(module)
        # Asked of the module, not of the distributions: a checkout on PYTHONPATH works, too.
        if find_spec(module) is None:
            raise ImportError(
                f'`{module}` is needed and none of {", ".join(DISTRIBUTIONS[module])} is '
                f'installed. Run: {DETECTION_HINT if module == "mmdet" else INSTALL_HINT}'
            )
        if len(found) > 1:
            raise ImportError(
                f'{" and ".join(found)} are installed together, and both provide `{module}`: '
                f'they overwrite each other. Uninstall every one of them, then install one stack: '
                f'pip uninstall -y {" ".join(_all_installed())} && {INSTALL_HINT}'
            )
    if 'mmdet' in toolboxes and find_spec('mmcv._ext') is None:
        raise ImportError(
            f'MMDetection needs the compiled ops of MMCV, and {installed_distributions("mmcv")[0]} '
            f'is installed without them. Run: {DETECTION_HINT}'
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


def multimodal_is_broken() -> bool:
    """Whether MMPretrain would import multimodal models that cannot be imported.

    MMPretrain 1.2 does so wherever pycocotools, which MMDetection needs, and transformers are
    installed, and raises a ``TypeError`` with a transformers of today. All of MMPretrain, and so
    MMDetection, then fails to import.
    """
    mmpretrain, transformers = _version('mmpretrain'), _version('transformers')
    if mmpretrain is None or transformers is None or _version('pycocotools') is None:
        return False
    from packaging.version import Version

    # Without apply_chunking_to_forward in transformers.modeling_utils: 4.53 has it, 4.56 has not.
    return Version(mmpretrain) < Version('1.3') and Version(transformers) >= Version('4.54')


def leave_out_broken_multimodal() -> None:
    """Tell MMPretrain that it lacks what its multimodal models need, where that is the case.

    Its other models, and MMDetection, can then be imported; the multimodal ones say what they need.
    """
    if multimodal_is_broken():
        from mmpretrain.utils import dependency

        dependency.WITH_MULTIMODAL = False


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _has(distribution: str) -> bool:
    return _version(distribution) is not None


def _all_installed() -> list[str]:
    return [name for module in DISTRIBUTIONS for name in installed_distributions(module)]
