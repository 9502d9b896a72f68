# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Loading a config of any of the toolboxes."""

import os
from collections.abc import Mapping
from typing import Any

import yaml
from mmengine.config import Config
from mmengine.fileio import register_handler
from mmengine.fileio.handlers.yaml_handler import YamlHandler

from mmaselect.openmmlab.compat import TOOLBOXES, check_toolboxes, map_config_scopes
from mmaselect.selection.defaults import PRESETS


class _PlainLoader(yaml.SafeLoader):
    """Plain values, and the tuples that MMEngine dumps."""

    def plain_tuple(self, node: yaml.SequenceNode) -> tuple:
        """A tuple of plain values."""
        return tuple(self.construct_sequence(node, deep=True))


_PlainLoader.add_constructor('tag:yaml.org,2002:python/tuple', _PlainLoader.plain_tuple)


class PlainYamlHandler(YamlHandler):
    """Reads YAML as data: MMEngine's own loader runs what ``!!python/object/apply`` names."""

    def load_from_fileobj(self, file: Any, **kwargs: Any) -> Any:
        return super().load_from_fileobj(file, **{**kwargs, 'Loader': _PlainLoader})


def read_yaml_as_data() -> None:
    """Have MMEngine read YAML, in this process, through :class:`PlainYamlHandler`."""
    register_handler(['yaml', 'yml'])(PlainYamlHandler)


def load_config(path: str | os.PathLike, options: dict | None = None) -> Config:
    """Load a config file, with ``mmseg::``, ``mmpretrain::`` and ``mmaselect::`` bases resolved.

    Args:
        path: The config file.
        options: Dotted keys that override the file's values. Defaults to None.

    Returns:
        Config: The config, with the classes of mmaselect registered.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is malformed, or YAML that names Python objects.
    """
    path = os.fspath(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f'There is no config file {path!r} (from {os.getcwd()!r}).')
    map_config_scopes()
    read_yaml_as_data()
    try:
        config = Config.fromfile(path)
    except yaml.YAMLError as error:
        raise ValueError(
            f'{path} is not a YAML of plain values ({error}). A config that needs Python is a '
            f'.py file'
        ) from error
    except SyntaxError as error:
        raise ValueError(
            f'{path}, or a base of it, is not valid Python: {error.msg} (line {error.lineno}: '
            f'{(error.text or "").strip()!r})'
        ) from error
    _drop_scope(config._cfg_dict)
    merge_options(config, options or {})
    import mmaselect.openmmlab.registries  # noqa: F401  # `mmaselect.X` is known even where the config does not import us

    return config


def _drop_scope(entry: Any) -> None:
    """Remove ``_scope_='mmaselect'``, which MMEngine puts into all that a ``mmaselect::`` base has.

    Its types are those of the toolbox in ``default_scope``; ours are named ``mmaselect.X``.
    """
    if isinstance(entry, dict):
        if entry.get('_scope_') == 'mmaselect':
            del entry['_scope_']
        entry = list(entry.values())
    if isinstance(entry, (list, tuple)):
        for one in entry:
            _drop_scope(one)


def merge_options(config: Config, options: Mapping[str, Any]) -> None:
    """Override values of a config, as :meth:`Config.merge_from_dict` does.

    A preset of a selection (``model.backbone.selection=paper``) replaces the entries that the
    preset names, and keeps the others, such as ``image_size``.

    Args:
        config: Changed in place.
        options: Dotted keys and their values.

    Example:
        >>> config = Config(dict(selection=dict(image_size=512, criterion='FisherScore')))
        >>> merge_options(config, {'selection': 'paper'})
        >>> config.selection
        {'image_size': 512, 'preset': 'paper'}
    """
    merged = dict(options)
    for key, preset in options.items():
        there = _entry(config, key)
        is_selection = key.rpartition('.')[2] == 'selection' and isinstance(there, Mapping)
        if is_selection and isinstance(preset, str) and preset in PRESETS:
            kept = {name: there[name] for name in there if name not in PRESETS[preset]}
            merged[key] = dict(kept, preset=preset, _delete_=True)
    config.merge_from_dict(merged)


def _entry(config: Config, key: str) -> Any:
    """What a config has at a dotted key; None where it has nothing."""
    found: Any = config
    for name in key.split('.'):
        found = found.get(name) if isinstance(found, (Config, Mapping)) else None
    return found


def get_toolbox(config: Config) -> str:
    """The toolbox that a config is written for, checked to be installed.

    Args:
        config: A config with a ``default_scope``.

    Returns:
        str: ``'mmseg'``, ``'mmpretrain'`` or ``'mmdet'``.

    Raises:
        ValueError: If the config's ``default_scope`` is none of them.
        ImportError: If the toolbox is not installed, or is installed twice.
    """
    scope = config.get('default_scope')
    if scope not in TOOLBOXES:
        raise ValueError(
            f"The config's `default_scope` is {scope!r}; it must be 'mmseg' (MMSegmentation), "
            "'mmpretrain' (MMPretrain) or 'mmdet' (MMDetection): set it in the config, or inherit "
            "the toolbox's default_runtime.py."
        )
    check_toolboxes(scope)
    return scope


#: Constructors that set a learning rate for each layer of a backbone that is trained.
LAYER_DECAY = (
    'LearningRateDecayOptimizerConstructor',
    'LayerDecayOptimizerConstructor',
    'LearningRateDecayOptimWrapperConstructor',
)


def type_name(config: Any) -> str:
    """The class that a config names, without its scope; lazy configs hold the class itself."""
    kind = config.get('type') if isinstance(config, Mapping) else None
    return kind.__name__ if isinstance(kind, type) else str(kind or '').rpartition('.')[2]


def check_optimizer(config: Config) -> None:
    """Check that the optimizer fits a backbone that is frozen.

    Raises:
        ValueError: If it decays the learning rate over the backbone's layers, as configs of MAE,
            BEiT and ConvNeXt do. The toolboxes' constructors know the layers of those alone.
    """
    backbone = (config.get('model') or {}).get('backbone')
    wrapper = config.get('optim_wrapper') or {}
    constructor = wrapper.get('constructor')
    name = (
        constructor.__name__ if isinstance(constructor, type) else str(constructor or '')
    ).rpartition('.')[2]
    if type_name(backbone) == 'ASelecTDiT' and name in LAYER_DECAY:
        raise ValueError(
            f'optim_wrapper.constructor is {name}, which decays the learning rate over the layers '
            f'of a backbone that is trained. ASelecTDiT is frozen: nothing is left to decay. Put '
            f"constructor='DefaultOptimWrapperConstructor', paramwise_cfg=dict(_delete_=True) into "
            f'the optim_wrapper of your config (norms and biases without weight decay: '
            f'paramwise_cfg=dict(_delete_=True, norm_decay_mult=0.0, bias_decay_mult=0.0))'
        )


#: Necks of MMDetection that take a pyramid and give one: maps of one stride stay so.
PYRAMIDS_OF_PYRAMIDS = (
    'FPG',
    'FPN',
    'FPN_CARAFE',
    'FPN_DropBlock',
    'NASFCOS_FPN',
    'NASFPN',
    'PAFPN',
    'RFP',
)


def check_pyramid(config: Config) -> None:
    """Check that a detector's levels have the strides that its anchors and its RoIs assume.

    Raises:
        ValueError: If the neck is an FPN right after an ASelecTDiT, whose maps have one stride: all
            levels would be of one size, and nothing else would say so.
    """
    model = config.get('model') or {}
    neck = model.get('neck')
    first = neck[0] if isinstance(neck, (list, tuple)) and neck else neck
    name = type_name(first)
    if (
        config.get('default_scope') == 'mmdet'
        and type_name(model.get('backbone')) == 'ASelecTDiT'
        and name in PYRAMIDS_OF_PYRAMIDS
    ):
        raise ValueError(
            f'the neck is {name}, and all maps of ASelecTDiT have one stride: its levels would all '
            f"be of one size. Use dict(type='mmaselect.SimpleFeaturePyramid', ...) in its place, "
            f"or neck=[dict(type='mmseg.Feature2Pyramid', ...), dict(type='{name}', ...)]; "
            f'configs/detection has both'
        )
