# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The command line that ``tools/train.py`` and ``tools/test.py`` share."""

import argparse
import contextlib
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from copy import deepcopy

import torch
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.registry import MODELS, RUNNERS
from mmengine.runner import FlexibleRunner, Runner
from torch import nn

from mmaselect.launch.config import check_optimizer, check_pyramid, get_toolbox, load_config
from mmaselect.launch.console import terse
from mmaselect.launch.determinism import let_the_rest_warn, prepare_determinism
from mmaselect.launch.distributed import (
    AverageNormStatistics,
    prepare_cpu_launch,
    wait_for_each_other,
)
from mmaselect.launch.flags import add_cfg_options, add_launcher
from mmaselect.launch.strategies import settle_strategy
from mmaselect.launch.waiting import PatientRunner, telling_others, wait_for_models
from mmaselect.openmmlab.checkpoints import read_only_weights, write_whole_files
from mmaselect.terminal.tool import make_tool_parser, user_path


def make_parser(description: str, examples: str = '') -> argparse.ArgumentParser:
    """An argument parser with the flags that both tools have, and examples below its help."""
    parser = make_tool_parser(description, examples)
    parser.add_argument('config', help='config file, of MMSegmentation, MMPretrain or MMDetection')
    parser.add_argument(
        '--work-dir',
        type=user_path,
        help='folder for logs and checkpoints; default: that of the config, else '
        'work_dirs/CONFIG_NAME',
    )
    parser.add_argument(
        '--no-pin-memory', action='store_true', help='set pin_memory=False in all dataloaders'
    )
    parser.add_argument(
        '--trust-checkpoint',
        action='store_true',
        help='read checkpoints that hold Python objects, and run the code in them; by default '
        'only tensors and what MMEngine writes are read',
    )
    parser.add_argument(
        '--verbose',
        action='store_true',
        help='print environment, config and hooks, too, which the log file always has',
    )
    add_cfg_options(parser)
    add_launcher(parser)
    return parser


def load_run_config(args: argparse.Namespace) -> tuple[Config, str]:
    """The config of a run with the shared flags merged in.

    ``--cfg-options`` are merged first, so that a flag of its own has the last word.

    Args:
        args: What :func:`make_parser`'s parser returned.

    Returns:
        tuple[Config, str]: The config, and its toolbox, one of ``TOOLBOXES``.
    """
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    read_only_weights(trust=args.trust_checkpoint)
    write_whole_files()
    config = load_config(args.config, args.cfg_options)
    import_mmaselect(config)
    toolbox = get_toolbox(config)
    check_optimizer(config)
    check_pyramid(config)
    config.launcher = args.launcher
    wait_for_each_other(config)
    if args.work_dir is not None:
        config.work_dir = args.work_dir
    elif config.get('work_dir') is None:
        name = os.path.splitext(os.path.basename(args.config))[0]
        config.work_dir = os.path.join('work_dirs', name)
    return config, toolbox


def import_mmaselect(config: Config) -> None:
    """Have a config import the package, so that what a run dumps works everywhere.

    The toolboxes' inference APIs and scripts then know ``mmaselect.X`` without an import before.

    Args:
        config: The run's config; changed in place.
    """
    imports = config.get('custom_imports') or {}
    names = imports.get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    if not any(name.partition('.')[0] == 'mmaselect' for name in names):
        config.custom_imports = dict(imports, imports=[*names, 'mmaselect'])


def set_dataloaders(
    config: Config,
    toolbox: str,
    names: tuple[str, ...],
    no_pin_memory: bool = False,
    no_persistent_workers: bool = False,
) -> None:
    """Fill in what the toolbox's own tools assume of a dataloader, and apply the flags.

    MMPretrain's configs count on its tools to set ``pin_memory``, ``persistent_workers`` and the
    collate function. Without worker processes ``persistent_workers`` is an error in PyTorch, and
    is set to False.

    Args:
        config: The run's config; changed in place.
        toolbox: ``'mmseg'``, ``'mmpretrain'`` or ``'mmdet'``.
        names: The dataloaders' names in the config.
        no_pin_memory: Whether to turn ``pin_memory`` off. Defaults to False.
        no_persistent_workers: Whether to turn ``persistent_workers`` off. Defaults to False.
    """
    defaults = ConfigDict()
    if toolbox == 'mmpretrain':
        defaults = ConfigDict(
            pin_memory=True, persistent_workers=True, collate_fn=dict(type='default_collate')
        )
    for name in names:
        if config.get(name) is None:
            continue
        loader = deepcopy(defaults)
        loader.update(config[name])
        if no_pin_memory:
            loader.pin_memory = False
        if no_persistent_workers or loader.get('num_workers', 0) == 0:
            loader.persistent_workers = False
        config[name] = loader


def seed_by_place(loader: ConfigDict) -> None:
    """Have a training dataloader augment each sample by its place in the run.

    A resumed run then sees the images that the unbroken one would have seen, with any number of
    worker processes. Dataloaders with a batch sampler of their own stay as they are: such samplers
    look into the plain indices.

    Args:
        loader: Config of the dataloader; changed in place.
    """
    sampler, dataset = loader.get('sampler'), loader.get('dataset')
    if loader.get('batch_sampler') is not None:
        return
    if not isinstance(sampler, Mapping) or not isinstance(dataset, Mapping):
        return
    if str(sampler.get('type')) == 'mmaselect.PlaceSampler':
        return  # a config that such a run has dumped
    loader.sampler = dict(type='mmaselect.PlaceSampler', sampler=sampler)
    loader.dataset = dict(type='mmaselect.SeededDataset', dataset=dataset)


def command_to_go_on(launcher: str) -> str:
    """The command that resumes the run of this process."""
    if launcher != 'none':
        return 'start it again in the same way, with --resume'
    words = [sys.executable, *sys.argv]
    if '--resume' in words:
        at = words.index('--resume')
        has_path = at + 1 < len(words) and not words[at + 1].startswith('-')
        del words[at : at + 1 + has_path]
    # Before the config's options, which take all words that follow.
    at = words.index('--cfg-options') if '--cfg-options' in words else len(words)
    return shlex.join([*words[:at], '--resume', *words[at:]])


@contextlib.contextmanager
def naming_memory(runner: Runner) -> Iterator[None]:
    """An error of a device that is full during training says what is on it, and what can shrink.

    Args:
        runner: The runner that trains within the block.
    """
    from mmaselect.models import ASelecTDiT

    try:
        yield
    except torch.OutOfMemoryError as error:
        frozen = [each.dit for each in runner.model.modules() if isinstance(each, ASelecTDiT)]
        trained = sum(
            value.numel() * value.element_size()
            for value in runner.model.parameters()
            if value.requires_grad
        )
        needs = [
            f'{dit.weight_bytes / 2**30:.2f} GiB of frozen weights in '
            f'{str(dit.dtype).removeprefix("torch.")}'
            for dit in frozen
        ]
        # Weights, gradients, and the two moments of Adam.
        needs.append(f'{4 * trained / 2**30:.2f} GiB of trained ones with gradients and Adam')
        raise torch.OutOfMemoryError(
            f'out of memory in training: the model needs {" and ".join(needs)}, and activations '
            f'come on top. Lower train_dataloader.batch_size (now '
            f'{runner.cfg.train_dataloader.get("batch_size")}) or the size of the images that the '
            f"pipeline gives (crop_size), set dtype='bf16' in the backbone, or train with --amp. "
            f'In a selection, lower selection.batch_size or selection.image_size\n({error})'
        ) from error


def build_runner(config: Config, verbose: bool = True) -> Runner:
    """Build the runner of a config, ready for any launcher on any device.

    It gets the hooks that make a run safe to stop and exact to resume, and, if an ASelecTDiT is in
    the model, the one that writes its selection; unless the config has them.

    Args:
        config: The run's config.
        verbose: Whether the terminal gets all of MMEngine's messages, as the log file does.
    """
    from mmaselect.engine.hooks import (
        ActivationCheckpointingHook,
        FrozenCacheHook,
        SelectionHook,
    )
    from mmaselect.launch.entries import check_entries
    from mmaselect.launch.hooks import IterationSeedHook, PlainCheckpointHook, SaveOnStopHook
    from mmaselect.models import ASelecTDiT

    settle_strategy(config)
    on_cpus = prepare_cpu_launch(config)
    prepare_determinism(config)
    is_other = 'runner_type' in config
    kind = RUNNERS.get(config.runner_type) if is_other else PatientRunner
    with telling_others():
        runner = (kind if verbose else terse(kind)).from_cfg(config)
        if isinstance(runner, FlexibleRunner):
            build_model(runner)
            wait_for_models()
    let_the_rest_warn()
    check_entries(runner.model)
    if on_cpus:
        runner.register_hook(AverageNormStatistics())
    present = {type(hook) for hook in runner.hooks}
    hooks = [
        ActivationCheckpointingHook(),
        FrozenCacheHook(),
        IterationSeedHook(),
        PlainCheckpointHook(),
        SaveOnStopHook(command_to_go_on(config.get('launcher', 'none'))),
    ]
    # A config of an installed toolbox, with our backbone put into it, names no hook of ours.
    if any(isinstance(module, ASelecTDiT) for module in runner.model.modules()):
        hooks.append(SelectionHook())
    for hook in hooks:
        if type(hook) not in present:
            runner.register_hook(hook)
    if isinstance(runner, FlexibleRunner):
        # It picks the timestep before its hooks are called: here it learns of a checkpoint.
        for hook in runner.hooks:
            if isinstance(hook, SelectionHook):
                hook.before_run(runner)
    return runner


def build_model(runner: FlexibleRunner) -> None:
    """Build the model of a FlexibleRunner, and move it to the device.

    Its strategies do so later: they pick the timestep first, on the CPU, and FSDP moves the tensors
    of the model one by one, without the frozen part, which is none of them.

    Args:
        runner: Before it trains or tests. What shards a model is given the trained part alone.
    """
    model = runner.model
    if not isinstance(model, nn.Module):
        model = MODELS.build(model)
    runner.model = model.to(get_device())
