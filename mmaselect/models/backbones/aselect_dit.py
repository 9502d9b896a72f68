# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""A frozen diffusion transformer as an OpenMMLab backbone, read at the timestep A-SelecT picks."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.model import BaseModule
from mmengine.registry import WEIGHT_INITIALIZERS
from torch import Tensor, nn

from mmaselect.apis.reader import check_schedule
from mmaselect.apis.sharing import Shareable, SharedPick
from mmaselect.checks import any_spelling, choice, gathered, keywords, shorten, three_numbers
from mmaselect.diffusion import FrozenDiT, ModelSource, TapKey
from mmaselect.diffusion.finite_watch import FiniteWatch
from mmaselect.diffusion.joining import join_maps, maps_in_words, parse_feature
from mmaselect.diffusion.map_reader import FixedNoise, read_maps
from mmaselect.diffusion.pixel_gate import ORDERS, PixelGate
from mmaselect.diffusion.timestep_plan import TimestepPlan
from mmaselect.images import CalibrationSet
from mmaselect.images.sources import build_image_source, check_calibration
from mmaselect.images.thumbnails import try_thumbnails
from mmaselect.logs import log, warn
from mmaselect.look import try_strip
from mmaselect.models.backbones.checkpoint_guard import (
    CheckpointGuard,
    maps_read,
    nothing_read_yet,
    restore_whole_numbers,
    says_what_was_read,
)
from mmaselect.models.backbones.frozen_cache import CacheOptions, FrozenCache
from mmaselect.models.backbones.input_guard import InputGuard
from mmaselect.models.backbones.joined_pca import MOST_IMAGES, JoinedPCA
from mmaselect.models.backbones.noise import FreshNoise, NoiseOptions
from mmaselect.models.backbones.pick import Pick
from mmaselect.models.backbones.preprocessor import Adopts, arrival
from mmaselect.openmmlab.registries import MODELS
from mmaselect.report.notice import announce_pick
from mmaselect.selection import (
    SelectionCache,
    SelectionOptions,
    SelectionResult,
    Sweep,
)
from mmaselect.selection.identity import check_result_model
from mmaselect.selection.options import not_selected
from mmaselect.selection.together import check_top

#: Arguments that configs of other backbones leave behind, and what to do about them.
OF_OTHER_BACKBONES = dict.fromkeys(
    ('arch', 'contract_dilation', 'depth', 'depths', 'dilations', 'drop_path_rate', 'drop_rate',
     'embed_dims', 'frozen_stages', 'img_size', 'in_channels', 'norm_cfg', 'norm_eval',
     'num_heads', 'num_layers', 'num_stages', 'patch_size', 'strides', 'style', 'window_size',
     'with_cp'),
    '_delete_=True into this backbone: the argument is of the one that it replaces',
)  # fmt: skip
#: Mean and std of pixels from 0 to 255 that makes them [-1, 1].
HALF = (127.5, 127.5, 127.5)
#: Precisions that an engine may give its heads.
HALVES = (torch.float16, torch.bfloat16)
#: Arguments of earlier versions, and the entries that they are now.
OLD_TIMESTEP = {'fusion': 'fusion', 'timestep_from': 'source'}
OLD_NOISE = {'noise_seed': 'seed', 'num_draws': 'draws'}


class _Frozen:
    """Holds the frozen model where ``nn.Module`` does not look.

    As a registered submodule it would be in every checkpoint, walked by MMEngine's ``init_weights``
    (minutes for billions of parameters), broadcast by DDP, and doubled by EMA's deep copy.
    """

    def __init__(self, dit: FrozenDiT) -> None:
        self.dit = dit

    def __deepcopy__(self, memo: dict) -> _Frozen:
        return self

    def is_place_open(self) -> bool:
        """Whether block and feature have yet to be picked.

        A method of what deep copies share: a function of the backbone would keep the original.
        """
        return self.dit.search is not None


def _plain(value: Any) -> str:
    """Numbers and words of a message, without the noise of float32."""
    return repr([round(one, 3) for one in value]) if isinstance(value, tuple) else repr(value)


def check_init_cfg(init_cfg: Any) -> None:
    """Check that ``init_cfg`` is what MMEngine's ``BaseModule`` takes.

    Raises:
        ValueError: If it is not.
    """
    configs = init_cfg if isinstance(init_cfg, (list, tuple)) else [init_cfg]
    for config in [] if init_cfg is None else configs:
        kind = config.get('type') if isinstance(config, Mapping) else None
        if not isinstance(kind, str) or WEIGHT_INITIALIZERS.get(kind) is None:
            raise ValueError(
                f'init_cfg must be None, or one or more dicts with the type of an initializer of '
                f'MMEngine; got {shorten(init_cfg)}'
            )


@MODELS.register_module()
class ASelecTDiT(BaseModule, Adopts, Shareable):
    """Feature maps of a frozen diffusion transformer at an automatically selected timestep.

    The timestep is picked in ``init_weights`` (A-SelecT, arXiv 2603.25758), which MMEngine's Runner
    calls once before training, and travels in checkpoints as a buffer. The frozen weights come from
    ``pretrained`` and are in no checkpoint.

    Args:
        pretrained: Hub id, local folder in diffusers' pipeline layout, or ``mmaselect://NAME`` for
            a model that ships with the package. Or a dict of such a ``model`` and other fields of
            :class:`~mmaselect.diffusion.ModelSource`: ``base``, ``vae``, ``original``, ``lora``,
            ``load_kwargs`` (``quantization_config``, ``device_map``), ``revision``, ``variant``,
            ``cache_dir``, ``token``, ``local_files_only``. See ``docs/checkpoints.md``.
        blocks: Indices of the transformer blocks to read, one feature map each; negative ones count
            from the end, repeats are allowed. The family's default (a middle block) if None.
            ``'auto'`` picks one together with the timestep, ``'auto:4'`` picks four, and
            ``'auto:<=30'`` one of the blocks up to 30; checkpoints bring the pick.
        feature: What to read in a block. Defaults to ``'query'``; ``'auto'`` picks one of the first
            five with the timestep. Several features of one pass are joined into one map: those of
            each block (``['query', 'attention']``), or all that are named with their blocks
            (``['2.attention', '4.query']``, without ``blocks``). A place that is searched gives
            several by ``selection=dict(top=3)``.

            - ``'query'``, ``'key'``, ``'value'``: as the attention's projections give them.
            - ``'attention'``: output of the attention layer.
            - ``'output'``: output of the block.
            - ``'query_post'``, ``'key_post'``: after QK norm and rotary embedding, in families that
              have either.

            Or a dict of such ``names`` and ``fusion``: ``'concat'`` joins channels;
            ``'concat:pca'`` reduces them to the width of the first feature by principal components,
            which are fitted to ``calibration`` and travel in checkpoints.
        timestep: ``'auto'``, or an index of the unshifted training schedule: 0 = clean,
            T - 1 = noise (T is 1000 for all published models). A list of them, one of which may be
            ``'auto'``, reads at each: ``['auto', 300]``. Or a dict:

            - ``steps``: any of these. Defaults to ``'auto'``.
            - ``fusion``: how maps of several timesteps become one: ``'concat'`` joins their
              channels, ``'mean'`` averages them. Either way an image costs one transformer pass for
              each; it is encoded once, and has one noise draw for all.
            - ``source``: which timestep holds where a checkpoint brings one: ``'checkpoint'``, the
              one that its heads were trained at (nothing is selected then, be it a resumed run,
              ``load_from`` or ``init_model``), or ``'config'``, the one that ``steps`` gives or
              selects.
        selection: How ``'auto'`` selects: ``'paper'`` for the paper's own criterion
            (:class:`~mmaselect.selection.criteria.paper_hfr.PaperHFR`, which says what it loses),
            or a dict of some of the fields of :class:`~mmaselect.selection.SelectionOptions`, and
            of ``preset='paper'``, which they change.
        calibration: Where calibration images come from: the config of any registered dataset
            (labels unused), a folder of images, or whatever else
            :func:`~mmaselect.images.units.image_units` takes: a list of files,
            ``'photos/*.jpg'``, a .txt file of paths, .zip, .tar or .parquet files. Next to a fixed
            ``timestep``, ``calibration`` and ``selection`` are not used, and a line of the log says
            so: configs inherit them. The faces in Python refuse them.
        condition: None for the null class or the empty prompt; a class label or a prompt otherwise.
        input_mean: What was subtracted from the pixels that arrive here, in 0..255 units: three
            numbers, or one for all channels. The model's own [-1, 1] range is restored from it. By
            default it is read from the ``data_preprocessor`` of the model that the backbone is in;
            a backbone in no such model takes pixels in [-1, 1].
        input_std: Standard deviation that they were divided by. By default as ``input_mean``.
        channel_order: Order of the channels that arrive here, ``'rgb'`` or ``'bgr'``. By default
            ``'rgb'`` where the ``data_preprocessor`` turns channels around; where it leaves them as
            they are loaded, the order must be given.
        dtype: Precision of the frozen part: ``'fp32'``, ``'fp16'`` or ``'bf16'``; or ``'auto'``,
            that of the
            published weights, but fp32 on a CPU that has no units for bf16. It holds under AMP too.
        noise: ``'fresh'`` is a new draw per call (in a run, one that depends on the run's seed, the
            iteration and the rank, so that a resumed run repeats it); ``'fixed'`` depends on the
            seed and the latent's shape alone; ``'auto'`` is fresh in training and fixed in
            evaluation. Or a dict of such a ``mode``, of ``seed`` (of fixed noise, 0) and ``draws``
            (whose features are averaged, at one transformer pass each; 1).
        compile: Whether to compile the blocks on the way to those that are read: True, or a dict of
            options of ``torch.compile``, such as ``dict(mode='max-autotune')``. The first pass
            takes long, and others are faster; features are equal up to rounding.
        cache: What the frozen part gives for an image is computed once and kept on disk, for later
            epochs, ranks and runs. None by default: nothing is kept.

            - ``'features'``: the maps. Needs ``noise='fixed'``, and images that come back: no
              augmentation, or one with few outcomes, such as a flip.
            - ``'latents'``: what the VAE's encoder gives; the transformer runs, on any noise.
            - A dict of ``kind`` (one of the two) and any of ``dtype`` of the files (``'fp32'``,
              ``'fp16'``, ``'bf16'``; by default one that loses nothing), ``folder``
              (``$MMASELECT_CACHE/frozen``) and ``max_gb``, the bound of its size (50).
        init_cfg: As in every ``BaseModule``; loads nothing of the frozen part.
        flat: Entries of ``pretrained``, ``timestep`` and ``noise`` as arguments of their own, as in
            versions before they were entries; a warning shows the new form.

    Shape:
        - Input: (B, 3, H, W), as the ``data_preprocessor`` gives it; any H and W.
        - Output: tuple of len(blocks) float32 maps (B, C, ceil(H / stride), ceil(W / stride));
          of images in fp16 or bf16, in their precision.

    Attributes:
        timestep (int): The timestep in use; raises if none was picked yet.
        timesteps (tuple[int, ...]): All timesteps that images are read at.
        pick (Pick): The timestep's life: where it comes from, and what a checkpoint says of it.
        selection_result (SelectionResult | None): Curve and pick, where this process selected.

    Example:
        >>> import torch
        >>> from mmaselect import ASelecTDiT
        >>> model = ASelecTDiT('mmaselect://dit_cifar10', timestep=50)
        >>> model(torch.zeros(1, 3, 32, 32))[0].shape
        torch.Size([1, 224, 8, 8])
    """

    @any_spelling
    def __init__(
        self,
        pretrained: str | Path | Mapping[str, Any] | ModelSource,
        blocks: Sequence[int] | int | str | None = None,
        feature: str | Sequence[str] | Mapping[str, Any] = 'query',
        timestep: str | int | Sequence[str | int] | Mapping[str, Any] = 'auto',
        selection: Mapping[str, Any] | str | None = None,
        calibration: str | Path | Sequence[str | Path] | Mapping[str, Any] | None = None,
        condition: Any = None,
        input_mean: float | Sequence[float] | None = None,
        input_std: float | Sequence[float] | None = None,
        channel_order: str | None = None,
        dtype: str | torch.dtype = 'auto',
        noise: str | Mapping[str, Any] = 'auto',
        compile: bool | Mapping[str, Any] = False,
        cache: str | Mapping[str, Any] | None = None,
        init_cfg: Mapping[str, Any] | None = None,
        **flat: Any,
    ) -> None:
        super().__init__(init_cfg)
        missing = check_calibration(calibration)
        timestep = gathered('timestep', timestep, 'steps', OLD_TIMESTEP, flat)
        noise = gathered('noise', noise, 'mode', OLD_NOISE, flat)
        self.source = ModelSource.gather(
            pretrained, flat, type(self), {**OF_OTHER_BACKBONES, **SelectionOptions.elsewhere()}
        )
        plan = TimestepPlan.parse(timestep)
        self.noise = NoiseOptions.parse(noise)
        if channel_order is not None:
            choice('channel_order', channel_order, ORDERS)
        if input_mean is not None:
            input_mean = three_numbers('input_mean', input_mean)
        if input_std is not None:
            input_std = three_numbers('input_std', input_std, positive=True)
        if not isinstance(compile, (bool, Mapping)):
            raise ValueError(
                f'compile must be True, False, or a dict of options of torch.compile; got '
                f'{shorten(compile)}'
            )
        compile_options = keywords('compile', compile) if isinstance(compile, Mapping) else {}
        cache_options = CacheOptions.parse(cache)
        is_fixed = self.noise.mode == 'fixed'
        if cache_options is not None and cache_options.kind == 'features' and not is_fixed:
            raise ValueError(
                f"cache='features' keeps one result for each image, and with noise={noise!r} an "
                f"image never gives the same twice. Set noise='fixed', or keep what comes before "
                f"the noise: cache='latents'"
            )
        check_init_cfg(init_cfg)
        if missing is not None and plan.is_automatic:
            warn(
                f'calibration {missing!r} does not exist here: the timestep has to come with a '
                f'checkpoint'
            )
        names, joining = parse_feature(feature)
        self.pretrained = str(self.source.model)
        self.selection = SelectionOptions.parse(selection)
        self.calibration = calibration
        self._given_pixels = (input_mean, input_std, channel_order)
        #: Message for an unknown order of channels.
        self._open_order: str | None = None

        self._frozen = _Frozen(
            FrozenDiT.from_pretrained(
                self.source,
                blocks=blocks,
                feature=names,
                dtype=dtype,
                condition=condition,
                check=partial(check_schedule, plan, self.selection),
            )
        )
        if self.dit.search is not None:
            check_top(self.selection, self.dit)
        is_compiled = bool(compile) or isinstance(compile, Mapping)
        self._compile_options = compile_options if is_compiled else None
        self._compile()
        width = plan.channels(self._width())
        self.joining: JoinedPCA | None = None
        if joining == 'concat:pca':
            self.joining = self._build_pca(plan)
            width = self.joining.widths[0]
        self.out_channels = [width] * self._count_maps()
        self.stride = self.dit.stride

        mean, std, order = self._given_pixels
        self.gate = PixelGate(
            mean or HALF,
            std or HALF,
            255,
            order or 'rgb',
            'Give the backbone the mean and std that pixels were normalized with, as input_mean '
            'and input_std',
            is_sure=mean is not None and std is not None,
        )
        if not plan.is_automatic and self.dit.search is None and self.joining is None:
            unused = not_selected(plan.steps[0], calibration=calibration, selection=selection)
            if unused is not None:  # configs inherit them: a run may fix the timestep in one entry
                log(f'{unused}: not used')
        self.pick = Pick(self, plan, self.dit.process, self._frozen.is_place_open, self.joining)
        if plan.count > 1:
            log(
                f'each image is read at {plan.count} timesteps '
                f'({", ".join(map(str, plan.steps))}; fusion {plan.fusion!r}): '
                f'{plan.count} transformer passes, {self.out_channels[0]} channels a map'
            )
        self._said_condition = condition
        condition = self.dit.family.condition_in_words(condition)
        self._inputs = InputGuard(mean or HALF, std or HALF, order or 'rgb', False, condition)
        for name, tensor in {**self._checked_tensors(), **self._inputs.buffers()}.items():
            self.register_buffer(name, tensor)
        self._fresh_noise = FreshNoise(self.noise.draws)
        self._fixed_noise = FixedNoise(self.noise.seed, self.noise.draws)
        self._finite_watch = FiniteWatch()
        self.cache: FrozenCache | None = None
        if cache_options is not None:
            self.cache = FrozenCache(self.dit, cache_options, (self.noise.seed, self.noise.draws))

    # -- sharing ----------------------------------------------------------------------------------
    @classmethod
    def from_pretrained(cls, shared: str | Path, **changes: Any) -> ASelecTDiT:
        """Read a model as somebody else did, by what ``save_pretrained`` wrote.

        Args:
            shared: Folder, or hub id, of the pick.
            changes: Further arguments of the class, such as ``cache``.

        Raises:
            FileNotFoundError: If there is no such folder and no such repository.
            ValueError: If it holds something else, or a change is a part of the pick.
        """
        pick = SharedPick.load(shared)
        given = pick.arguments(changes)
        given['timestep'] = pick.timestep
        seed = given.pop('seed')
        given.setdefault('noise', dict(mode='auto', seed=seed))
        given.pop('image_size', None)  # images come as the pipeline of the config makes them
        backbone = cls(**given)
        if pick.result is not None:
            check_result_model(pick.result, backbone.dit)
            backbone.pick.result = pick.result
        return backbone

    def shared_pick(self) -> SharedPick:
        """What ``save_pretrained`` writes."""
        if self.joining is not None:
            raise ValueError(
                "feature's fusion 'concat:pca' has components that a shared pick does not hold: "
                "share the checkpoint, or take fusion='concat'"
            )
        found = self.selection_result
        result = found if found is not None and found.timestep == self.timestep else None
        plan, seed, said = self.pick.plan, self.noise.seed, self._said_condition
        return SharedPick.of(
            self.dit, self.source, self.timesteps, plan.fusion, result, seed=seed, condition=said
        )

    # -- the place --------------------------------------------------------------------------------
    @property
    def blocks(self) -> tuple[int, ...]:
        """Blocks that are read, one map each; of a search, before its pick, the candidates."""
        return self.dit.blocks

    @property
    def feature(self) -> str | list[str]:
        """Name of the feature that is read, or of those that are; ``'auto'`` before the pick."""
        search = self.dit.search
        if search is not None and search.features:
            return 'auto'
        _, names = self.dit.place_arguments
        return names[0] if len(names) == 1 else names

    @property
    def out_indices(self) -> tuple[int, ...]:
        """The toolboxes' scripts (vis_tsne, for one) name a backbone's maps by it."""
        return tuple(max(block for block, _ in group) for group in self.dit.maps)

    def _count_maps(self) -> int:
        search = self.dit.search
        if search is None:
            return len(self.dit.maps)
        return search.count if search.blocks else len(self.dit.blocks)

    @property
    def _top(self) -> int:
        """(block, feature) that are picked for a map."""
        return 1 if self.dit.search is None else self.selection.top

    def _width(self) -> int:
        """Channels of a map, whichever is picked.

        Raises:
            ValueError: If those that may be picked differ.
        """
        maps = self.dit.maps
        widths = {sum(self.dit.channels(key) for key in group) for group in maps}
        if len(widths) > 1:
            raise ValueError(
                f'blocks and features that may be read differ in channels ({sorted(widths)}), and '
                f'a head has to know them: name blocks and feature'
            )
        return widths.pop() * self._top

    def _build_pca(self, plan: TimestepPlan) -> JoinedPCA:
        """What reduces joined features.

        Raises:
            ValueError: If nothing is joined, or there is nothing to fit to.
        """
        group = self.dit.maps[0] * self._top
        if len(group) == 1:
            raise ValueError(
                "feature's fusion 'concat:pca' reduces several features, and one is read: name "
                'several, or search a place with selection=dict(top=...) above 1'
            )
        if self.calibration is None:
            raise ValueError(
                "feature's fusion 'concat:pca' is fitted to calibration images: give calibration, "
                "or take fusion='concat'"
            )
        widths = [plan.channels(self.dit.channels(key)) for key in group]
        return JoinedPCA(widths, self._count_maps())

    def _compile(self) -> None:
        if self._compile_options is None or self.dit.search is not None:
            return  # every block is read while the place is searched
        try:
            self.dit.compile_blocks(**self._compile_options)
        except Exception as error:  # torch.compile looks at each option in a way of its own
            raise ValueError(
                f'compile={shorten(self._compile_options)} was rejected by torch.compile: {error}'
            ) from error

    def _guard(self) -> CheckpointGuard:
        return CheckpointGuard.of(self.dit, self.pretrained)

    def _checked_tensors(self) -> dict[str, Tensor]:
        """What a checkpoint says of the frozen model; of a search, before its pick, nothing yet."""
        if self.dit.search is None:
            return self._guard().buffers()
        return nothing_read_yet(self._count_maps(), self._top)

    def settle_place(self, cells: Sequence[TapKey]) -> None:
        """Read at a place that was picked from now on, and free the blocks behind it."""
        self.dit.settle(cells, joined=self._top > 1)
        self._compile()
        for name, tensor in self._checked_tensors().items():
            getattr(self, name).copy_(tensor)

    # -- the frozen part --------------------------------------------------------------------------
    @property
    def dit(self) -> FrozenDiT:
        """The frozen model; shared, not copied, by deep copies of the backbone."""
        return self._frozen.dit

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **kwargs: Any) -> ASelecTDiT:
        super()._apply(fn, *args, **kwargs)
        # Follow the device; the precision stays what `dtype` says.
        if self.gate.scale.device.type != 'meta':
            self.dit.follow(self.gate.scale.device)
        return self

    # -- pixels -----------------------------------------------------------------------------------
    def adopt_preprocessor(self, preprocessor: nn.Module) -> None:
        """Take over what a model's ``data_preprocessor`` does to pixels, so that it is undone.

        Args:
            preprocessor: Preprocessor of the model that this backbone is put into.

        Raises:
            ValueError: If arguments contradict it.
        """
        does = arrival(preprocessor)
        if does is None:
            return
        mean, std, order = self._given_pixels
        for name, given, found in (
            ('input_mean', mean, does.mean),
            ('input_std', std, does.std),
            ('channel_order', order, does.order or order),
        ):
            if given is not None and _plain(given) != _plain(found):
                raise ValueError(
                    f'{name}={_plain(given)} of the backbone contradicts the data_preprocessor of '
                    f'its model, a {does.name} that gives {_plain(found)}: leave {name} out, and '
                    f'the backbone takes what the data_preprocessor does'
                )
        order = does.order or order
        self._open_order = None
        if order is None:
            self._open_order = (
                f'channel_order is open: the data_preprocessor of the model, a {does.name}, leaves '
                f'channels as they are loaded. For image files, which MMCV loads as BGR, let it '
                f'turn them around (bgr_to_rgb=True or to_rgb=True), or give the backbone '
                f"channel_order='bgr'; for data sets of RGB arrays (CIFAR of MMPretrain) give it "
                f"channel_order='rgb'"
            )
        advice = (
            f'The {does.name} of the model subtracts mean {_plain(does.mean)} and divides by std '
            f'{_plain(does.std)}: see to it that batches come through it, and with values from 0 '
            f'to 255'
        )
        self.gate.set(does.mean, does.std, order or 'rgb', advice, is_sure=True)
        loaded = 'bgr' if does.order else order
        self._inputs = replace(self._inputs, mean=does.mean, std=does.std, order=loaded, told=True)
        for name, tensor in self._inputs.buffers().items():
            getattr(self, name).copy_(tensor)

    def _check_order(self) -> None:
        if self._open_order is not None:
            raise ValueError(self._open_order)

    # -- the pick ---------------------------------------------------------------------------------
    @property
    def timestep(self) -> int:
        """The timestep in use.

        Raises:
            RuntimeError: If none was picked yet.
        """
        self.settle_pick()
        return self.pick.timestep

    @timestep.setter
    def timestep(self, value: int) -> None:
        self.pick.timestep = value

    @property
    def timesteps(self) -> tuple[int, ...]:
        """All timesteps that images are read at."""
        return self.pick.plan.resolved(self.timestep)

    @property
    def is_automatic(self) -> bool:
        """Whether the timestep is selected."""
        return self.pick.plan.is_automatic

    @property
    def selection_result(self) -> SelectionResult | None:
        return self.pick.result

    def init_weights(self) -> None:
        """Pick the timestep, unless it is given, there already, or to come from a checkpoint."""
        super().init_weights()
        self._check_order()
        if self.pick.is_needed():
            self._settle()

    def _settle(self) -> None:
        """Pick what is open, and fit what reduces joined features."""
        if self.pick.found is None or self.dit.search is not None:
            self.select_timestep()
        if self.joining is not None and not self.joining.is_fitted:
            options = self.selection
            source = build_image_source(self.calibration, options.array_order)
            size = options.image_size or self.dit.native_size
            images = CalibrationSet(source, size, options.first_images, options.seed)
            self.joining.fit(
                self.dit, self.pick.plan, self.pick.timestep, images, options.seed,
                options.batch_size,
            )  # fmt: skip
            log(f'the joined features were fitted to {min(len(images), MOST_IMAGES)} images')

    def settle_pick(self) -> None:
        """Select after all, if ``init_weights`` left it to a checkpoint, and that brought none."""
        if self.pick.is_overdue():
            # The first forward pass may be what asks.
            with torch.autocast(self.gate.scale.device.type, enabled=False):
                self._settle()

    def build_sweep(self, **overrides: Any) -> Sweep:
        """The sweep that ``selection`` and ``calibration`` describe.

        Args:
            overrides: Entries of ``selection`` that replace the config's.
        """
        options = self.selection.replaced(**overrides)
        if not self.is_automatic and self.dit.search is not None:  # the place alone is picked
            options = options.replaced(timesteps=[self.pick.timestep])
        source = build_image_source(self.calibration, options.array_order)
        return Sweep.of_source(self.dit, source, options, SelectionCache(options.cache_dir))

    def select_timestep(self, progress: bool = True) -> SelectionResult:
        """Sweep (or find the stored result), and read at the winner from now on."""
        sweep = self.build_sweep()
        result = sweep.run(progress=progress)
        if self.dit.search is not None:
            self.settle_place(result.cells)
        self.timestep = result.timestep
        self.pick.result = result
        if is_main_process():
            self.pick.thumbnails = try_thumbnails(sweep.calibration, result.num_images)
            if not sweep.was_stored:  # a start that finds its pick in the cache runs no model
                self.pick.strip = try_strip(self.dit, sweep.calibration, result)
        announce_pick(sweep, result)
        return result

    # -- features ---------------------------------------------------------------------------------
    def train(self, mode: bool = True) -> ASelecTDiT:
        """Switch between training and evaluation; a cache writes what it still holds in memory."""
        if self.cache is not None:
            self.cache.flush()  # MMEngine's loops call this once an epoch
        return super().train(mode)

    # A graph cannot hold hooks, nor an exception that ends the pass early.
    @torch.compiler.disable
    @torch.no_grad()
    def forward(self, inputs: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of a batch; see the class for shapes."""
        self._check_order()
        picked = self.timestep
        if self.dit.search is not None:
            raise RuntimeError(
                'this ASelecTDiT has no place yet: blocks and feature are picked by '
                'init_weights(), which training calls, or come with a checkpoint. Load a '
                'checkpoint that was trained with this backbone, call init_weights(), or name '
                'blocks and feature'
            )
        self._fresh_noise.begin()
        noise = self._fresh_noise if self.noise.is_fresh(self.training) else self._fixed_noise
        images = self.gate(inputs)
        maps = read_maps(
            self.dit, self.pick.plan, picked, images, noise, self._finite_watch, self.cache
        )
        # Engines that train heads in 16 bits (FSDP, DeepSpeed) cast the images that arrive.
        dtype = inputs.dtype if inputs.dtype in HALVES else torch.float32
        joined = join_maps(maps, self.dit.maps)
        if self.joining is not None:
            with torch.autocast(inputs.device.type, enabled=False):
                joined = self.joining(joined)
        return tuple(one.to(dtype) for one in joined)

    # -- checkpoints ------------------------------------------------------------------------------
    def _load_from_state_dict(
        self, state_dict: dict, prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        restore_whole_numbers(state_dict, prefix, self._buffers)
        # MMEngine only logs what load_state_dict complains of, so a wrong model is raised here.
        self._take_place(state_dict, prefix)
        if self.dit.search is None and says_what_was_read(state_dict, prefix):
            self._guard().check(state_dict, prefix)
        self._inputs.check(state_dict, prefix)
        self._inputs.complete(state_dict, prefix)
        theirs = prefix + 'joining.weight' in state_dict
        if says_what_was_read(state_dict, prefix) and theirs != (self.joining is not None):
            raise ValueError(
                f"the checkpoint was trained with feature's fusion "
                f'{"concat:pca" if theirs else "concat"!r}: set it in feature to what the '
                f'checkpoint was trained with'
            )
        with self.pick.loading(state_dict, prefix):
            super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _take_place(self, state_dict: Mapping[str, Tensor], prefix: str) -> None:
        """Read where the heads of a checkpoint were trained, if the config leaves it open."""
        read_from = state_dict.get(prefix + 'read_from')
        if self.dit.search is None or read_from is None:
            return
        if not says_what_was_read(state_dict, prefix):
            return
        maps = maps_read(read_from, tuple(self.dit.family.features))
        cells = [key for group in maps for key in group]
        wanted = self._count_maps() * self._top
        fits = len(maps) == self._count_maps() and len(cells) == wanted
        if not fits or not set(cells) <= set(self.dit.keys):
            raise ValueError(
                f'the checkpoint was trained on {maps_in_words(maps)}, which are not '
                f'{wanted} of the places that this config may pick from. Set blocks and feature to '
                f'these'
            )
        self.settle_place(cells)
        log(f'{maps_in_words(self.dit.maps)}: the place comes from the checkpoint')

    def __repr__(self) -> str:
        return f'{self._get_name()}({self.extra_repr()})'

    def _blocks_in_words(self) -> str:
        search = self.dit.search
        if search is None or not search.blocks:
            return str(list(self.blocks))
        return 'auto' if search.count == 1 else f'auto:{search.count}'

    def extra_repr(self) -> str:
        count = sum(parameter.numel() for parameter in self.dit.transformer.parameters())
        return (
            f'pretrained={self.pretrained!r}, frozen={self.dit.family.transformer_class}, '
            f'blocks={self._blocks_in_words()} of {self.dit.num_blocks}, '
            f'feature={self.feature!r}, '
            f'timestep={self.pick}, parameters={count / 1e6:.1f}M, '
            f'dtype={str(self.dit.dtype).removeprefix("torch.")}, stride={self.stride}'
        )
