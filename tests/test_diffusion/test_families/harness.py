# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The proof that every family must pass, on a tiny model of the true class.

Features of ``FrozenDiT`` must equal, bit for bit, what plain hooks read while the stock pipeline
that diffusers loads from the same folder makes an image: its own ``__call__`` embeds the prompt and
computes time, shift, ids and masks; no forward pass is written here.

A test file subclasses :class:`FamilyProof`; pytest then runs all of it for that family, with the
fixtures of ``conftest.py``: ``folder``, ``pipeline`` (stock's) and ``load`` (ours)::

    class TestSD3(FamilyProof):
        num_blocks = 4

        def build(self, folder): ...  # save a tiny pipeline
        def points(self, block): ...  # where plain hooks go
"""

import contextlib
from typing import ClassVar

import diffusers
import pytest
import torch
from fake_cuda import READS, FakeCuda
from packaging.version import Version
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmaselect.diffusion import FrozenDiT, PipelineSource, draw_noise, family_of, parse_dtype
from mmaselect.diffusion.pass_cost import PassCost
from mmaselect.models import ASelecTDiT

#: Before PyTorch 2.9, attention in float32 is rounded on a CPU by where its operands lie in memory.
ROUNDS_BY_PLACE = Version(torch.__version__) < Version('2.9')


def assert_same(found, wanted, what):
    """Equal bit for bit; or, where PyTorch itself is not, to a millionth of the largest value."""
    if ROUNDS_BY_PLACE and wanted.dtype == torch.float32:
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))
    else:
        assert torch.equal(found, wanted), what


def first_tokens(output, n):
    """Image tokens of a joint sequence that the image leads."""
    return output[:, :n]


def last_tokens(output, n):
    """Image tokens of a joint sequence that the text leads."""
    return output[:, -n:]


def item(index, pick=None):
    """Entry of a module's tuple output, then ``pick``."""
    return lambda output, n: pick(output[index], n) if pick else output[index]


@contextlib.contextmanager
def recorded(model, paths):
    """Outputs of submodules by path, of the model's last forward pass; each runs once in it."""
    outputs = {}

    def hook(path):
        def store(module, args, output):
            assert path not in outputs, f'{path} ran twice'
            outputs[path] = output

        return store

    handles = [model.get_submodule(p).register_forward_hook(hook(p)) for p in {*paths}]
    handles.append(model.register_forward_pre_hook(lambda module, args: outputs.clear()))
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def attention_operands(model, paths):
    """(query, key), (B, heads, N, C), that attention layers hand to torch's products, by path."""
    operands, running = {}, []
    product = torch.nn.functional.scaled_dot_product_attention

    def recording(query, key, *args, **kwargs):
        if running:
            operands.setdefault(running[-1], []).append((query, key))
        return product(query, key, *args, **kwargs)

    handles = [model.register_forward_pre_hook(lambda module, args: operands.clear())]
    for path in {*paths}:
        module = model.get_submodule(path)
        handles += [
            module.register_forward_pre_hook(lambda m, args, path=path: running.append(path)),
            module.register_forward_hook(lambda m, args, output: running.pop() and None),
        ]
    torch.nn.functional.scaled_dot_product_attention = recording
    try:
        yield operands
    finally:
        torch.nn.functional.scaled_dot_product_attention = product
        for handle in handles:
            handle.remove()


#: Precision, and which of the timesteps, of the comparison. One is enough for each day: 16 bits
#: show a wrong order of casts, too, and :class:`FamilyProof` compares in fp32 at another timestep.
COMPARISONS = [
    pytest.param(
        *(dtype, which),
        id=f'{dtype}-{("uneven", "even")[which]}',
        marks=() if (dtype, which) == ('bf16', 0) else pytest.mark.thorough,
    )
    for dtype in ('fp32', 'bf16', 'fp16')
    for which in (0, 1)
]


class WantedStepDone(Exception):
    """Ends a pipeline's call early."""


class FeatureProof:
    """The heart of it; enough for a variant of a family that another test file class covers."""

    #: Of the tiny model; 4 at least, so that first, middle and last differ.
    num_blocks: int
    #: Pixels per token of the tiny model.
    stride: int
    #: Images (height, width): square, and not square either way.
    sizes = ((64, 64), (64, 96), (96, 32))
    #: What FrozenDiT is given.
    condition = None
    #: As the paper has it: 0 is clean.
    timestep = 300
    #: Of the comparison in each precision: uneven and even.
    timesteps = (137, 612)
    #: Products that an attention layer computes; the image's is the last of them.
    products = 1
    #: What the pipeline calls the number of images.
    images_per_prompt = 'num_images_per_prompt'
    #: The prompt that the pipeline is given for it, and further arguments of its call.
    prompt = ''
    call_options: ClassVar = {'guidance_scale': 1.0}

    # -- what a family supplies -------------------------------------------------------------------
    def build(self, folder):
        """Save a tiny pipeline of true classes, with random weights, to ``folder``."""
        raise NotImplementedError

    def points(self, block):
        """Feature to (path of a submodule of the transformer, (its output, N) to image tokens).

        All of 'query', 'key', 'value', 'attention', 'output' that the family offers.
        """
        raise NotImplementedError

    def post_points(self, block):
        """Path of the attention layer, and (its Q or K, N) to those of the image's tokens.

        None where the family offers no 'query_post' and 'key_post'.
        """
        return

    def stock_pipeline(self, folder, **options):
        """What stock diffusers loads from ``folder``, complete."""
        return diffusers.DiffusionPipeline.from_pretrained(folder, **options)

    def steps(self, pipeline, noisy, timestep):
        """What makes the first (and only) step of the pipeline's call start at a timestep."""
        return {'num_inference_steps': 1, 'sigmas': [timestep / 1000]}

    def steps_until(self, pipeline, noisy, wanted, of):
        """The same where the call takes no noise levels: a run that ends with a wanted step.

        Each step, counted from 0, starts from the same latent.
        """
        latents = self.running_latents(pipeline, noisy.to(pipeline.transformer.dtype))

        def after(pipeline, step, timestep, tensors):
            if step == wanted:
                raise WantedStepDone
            # In place for a pipeline that does not look at what is returned.
            tensors['latents'].copy_(latents)
            return tensors

        return {'num_inference_steps': of, 'callback_on_step_end': after}

    def stock_latents(self, pipeline, noisy):
        """A latent (B, C, h, w) of its dtype in the form in which the pipeline takes it."""
        return noisy

    def running_latents(self, pipeline, noisy):
        """The same in the form in which the pipeline keeps it from step to step."""
        return self.stock_latents(pipeline, noisy)

    def stock_call(self, pipeline, noisy, size, timestep):
        """Let the pipeline make images of (height, width), from a noisy latent (B, C, h, w)."""
        with contextlib.suppress(WantedStepDone):
            pipeline(
                prompt=self.prompt,
                height=size[0],
                width=size[1],
                latents=self.stock_latents(pipeline, noisy.to(pipeline.transformer.dtype)),
                output_type='latent',
                **{self.images_per_prompt: len(noisy)},
                **self.steps(pipeline, noisy, timestep),
                **self.call_options,
            )

    def stock_latent(self, pipeline, images):
        """Clean latent as the pipeline's VAE gives it."""
        config = pipeline.vae.config
        latent = pipeline.vae.encode(images).latent_dist.mode()
        return (latent - (getattr(config, 'shift_factor', None) or 0)) * config.scaling_factor

    # -- helpers ----------------------------------------------------------------------------------
    @property
    def chosen_blocks(self):
        return (0, self.num_blocks // 2, self.num_blocks - 1)

    def noisy(self, dit, size, batch=2, timestep=None):
        """A clean latent, its noise, both mixed, and the noise level."""
        torch.manual_seed(sum(size))
        latent = dit.encode(torch.rand(batch, 3, *size) * 2 - 1)
        noise = draw_noise(latent.shape[1:], list(range(batch)))
        rows, columns = dit.family.grid(latent)
        level = dit.process.at(timestep or self.timestep, num_tokens=rows * columns)
        return latent, noise, dit.process.add_noise(latent, noise, level), level

    @torch.no_grad()
    def stock_features(self, pipeline, noisy, size, timestep=None):
        """(block, feature) to a map (B, C, h, w), by plain hooks while the pipeline is called."""
        rows, columns = size[0] // self.stride, size[1] // self.stride
        points = {
            (block, feature): point
            for block in self.chosen_blocks
            for feature, point in self.points(block).items()
        }
        post = {block: self.post_points(block) for block in self.chosen_blocks}
        post = {block: point for block, point in post.items() if point}
        pipeline.set_progress_bar_config(disable=True)
        with (
            recorded(pipeline.transformer, [path for path, _ in points.values()]) as outputs,
            attention_operands(pipeline.transformer, [p for p, _ in post.values()]) as operands,
        ):
            self.stock_call(pipeline, noisy, size, timestep or self.timestep)
        tokens = {key: pick(outputs[path], rows * columns) for key, (path, pick) in points.items()}
        for block, (path, pick) in post.items():
            assert len(operands[path]) == self.products, path
            for name, operand in zip(('query', 'key'), operands[path][-1], strict=True):
                heads_last = operand.transpose(1, 2).flatten(2)
                tokens[block, f'{name}_post'] = pick(heads_last, rows * columns)
        return {
            key: value.reshape(len(value), rows, columns, -1).permute(0, 3, 1, 2)
            for key, value in tokens.items()
        }

    # -- the proof --------------------------------------------------------------------------------
    @pytest.mark.parametrize(('dtype', 'which'), COMPARISONS)
    def test_features_equal_the_pipelines_own_call(self, folder, load, stock, dtype, which):
        timestep = self.timesteps[which]
        # All three sizes come up: square, wide and tall.
        size = self.sizes[(['fp32', 'bf16', 'fp16'].index(dtype) + which) % 3]
        pipeline = stock(dtype)
        family = family_of(PipelineSource(folder))
        dit = load(blocks=self.chosen_blocks, features=family.features, dtype=dtype)
        assert (dit.num_blocks, dit.stride) == (self.num_blocks, self.stride)
        latent, noise, noisy, level = self.noisy(dit, size, timestep=timestep)
        expected = self.stock_features(pipeline, noisy, size, timestep)
        features = dit.features(latent, timestep, noise)
        assert features.keys() == expected.keys()
        for key, value in expected.items():
            assert features[key].dtype == parse_dtype(dtype)
            assert_same(features[key], value, key)
            assert dit.channels(key) == value.shape[1], key
        # No two of them are the same by accident (a hook in the wrong place).
        maps = [value for value in features.values() if value.shape == features[0, 'query'].shape]
        assert not any(torch.equal(a, b) for i, a in enumerate(maps) for b in maps[:i])
        assert self.stock_level(pipeline, timestep) == (level.alpha, level.sigma)

    def stock_level(self, pipeline, timestep):
        """Share of the clean latent and of noise at the step that was called, by its scheduler."""
        scheduler = pipeline.scheduler
        if isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
            sigma = scheduler.sigmas[0]
            return (1 - sigma).item(), sigma.item()
        signal = scheduler.alphas_cumprod[timestep]
        return (signal**0.5).item(), ((1 - signal) ** 0.5).item()


class FamilyProof(FeatureProof):
    """All of it."""

    #: Names of the ModuleLists that hold the blocks that are counted.
    stacks = ('transformer_blocks',)

    def test_a_pass_on_a_gpu(self, load):
        """Nothing is left behind, nothing is waited for, and autocast changes no dtype."""
        dit = load(blocks=self.chosen_blocks, features=load().family.features, dtype='bf16')
        with FakeCuda() as device:
            dit.to('cuda')
            latent = dit.encode(torch.zeros(2, 3, *self.sizes[1], device='cuda'))
            assert (latent.device.type, latent.dtype) == ('cuda', torch.float32)
            noise = torch.randn_like(latent)
            with contextlib.suppress(*READS):
                for _ in range(2):  # what is copied once, is copied in the first pass
                    device.forget()
                    with torch.autocast('cuda', torch.float16), device.noting_reads():
                        maps = dit.features(latent, self.timestep, noise)
                assert maps.keys() == set(dit.keys)
                assert {each.dtype for each in maps.values()} == {torch.bfloat16}
                assert {each.device.type for each in maps.values()} == {'cuda'}
        places = [lines[-1] for _, lines in device.waits]
        if dit.family.waits_in:
            file = dit.family.waits_in.partition(':')[0]
            assert places and all(file in place for place in places), places
        else:
            assert not device.waits, device.waits

    def test_each_feature_alone_equals_all_together(self, load):
        """Each ends its pass elsewhere."""
        dit = load(blocks=1)
        latent, noise, *_ = self.noisy(dit, self.sizes[1])
        condition = {
            name.removeprefix('condition_'): value
            for name, value in dit.named_buffers()
            if name.startswith('condition_')
        }

        def features(wanted):
            parts = dit.transformer, dit.family, dit.process, dit.codec, condition
            return FrozenDiT(*parts, dit.blocks, wanted).features(latent, self.timestep, noise)

        together = features(dit.family.features)
        for feature in dit.family.features:
            assert torch.equal(features(feature)[1, feature], together[1, feature]), feature

    @pytest.mark.parametrize('which', [0, 1, 2], ids=['first', 'middle', 'last'])
    def test_only_the_needed_blocks_are_built(self, load, pipeline, which):
        block = self.chosen_blocks[which]
        dit = load(blocks=block)
        stock = pipeline.transformer.state_dict()
        own = dit.transformer.state_dict()
        assert own.keys() <= stock.keys()
        for name, value in own.items():
            assert torch.equal(value, stock[name]), name
        built = self.block_paths(own)
        assert len(built) == block + 1
        if block + 1 == self.num_blocks:
            assert built == self.block_paths(stock)
        latent, noise, noisy, _ = self.noisy(dit, self.sizes[1])
        expected = self.stock_features(pipeline, noisy, self.sizes[1])
        features = dit.features(latent, self.timestep, noise)
        assert_same(features[block, 'query'], expected[block, 'query'], block)

    def block_paths(self, state_dict):
        """Names of the blocks that a state dict holds."""
        names = {tuple(name.split('.')[:2]) for name in state_dict}
        return {(stack, index) for stack, index in names if stack in self.stacks}

    def test_flops_of_each_cell_are_those_of_its_own_pass(self, load):
        dit = load(blocks='auto', features='auto')
        cost = PassCost.of(dit, self.sizes[1])
        assert set(cost.flops) == set(dit.keys)
        latent, noise, *_ = self.noisy(dit, self.sizes[1])
        for key in (dit.keys[0], dit.keys[-1]):
            counter = FlopCounterMode(display=False)
            with counter, sdpa_kernel(SDPBackend.MATH):
                dit.features(latent[:1], self.timestep, noise[:1], [key])
            assert counter.get_total_flops() == cost.flops[key], key

    def test_latent_equals_the_vae(self, load, pipeline):
        dit = load()
        images = torch.rand(2, 3, *self.sizes[1]) * 2 - 1
        with torch.no_grad():
            expected = self.stock_latent(pipeline, images)
        assert torch.equal(dit.encode(images), expected)

    def test_gradients_are_off(self, load):
        dit = load(features=('query', 'output'))
        dit.train()
        assert not any(p.requires_grad for p in dit.parameters())
        assert not any(m.training for m in dit.modules())
        latent, noise, *_ = self.noisy(dit, self.sizes[0])
        latent.requires_grad_()
        assert not any(f.requires_grad for f in dit.features(latent, self.timestep, noise).values())

    def test_no_hook_stays_behind(self, load):
        dit = load(features=load().family.features)
        latent, noise, *_ = self.noisy(dit, self.sizes[0])
        dit.features(latent, self.timestep, noise)
        hooked = [n for n, m in dit.named_modules() if m._forward_hooks or m._forward_pre_hooks]
        assert hooked == []

    def test_a_sweep_and_training_through_the_backbone(self, folder, photos):
        backbone = ASelecTDiT(
            folder,
            timestep='auto',
            condition=self.condition,
            calibration=photos,
            selection={
                'timesteps': [200, 500],
                'num_images': 4,
                'batch_size': 4,
                'image_size': self.sizes[0][0],
            },
            noise='fixed',
        )
        backbone.init_weights()
        result = backbone.selection_result
        assert backbone.timestep == result.timestep
        assert [point.timestep for point in result.curve.points] == [200, 500]

        head = torch.nn.Sequential(
            torch.nn.AdaptiveAvgPool2d(1),
            torch.nn.BatchNorm2d(backbone.out_channels[0]),
            torch.nn.Flatten(),
            torch.nn.Linear(backbone.out_channels[0], 2),
        )
        before = {k: v.clone() for k, v in backbone.dit.transformer.state_dict().items()}
        optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
        images = torch.rand(2, 3, *self.sizes[1]) * 2 - 1
        losses = []
        for _ in range(8):
            (features,) = backbone.train()(images)
            losses.append(torch.nn.functional.cross_entropy(head(features), torch.arange(2)))
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
        assert losses[-1] < 0.8 * losses[0]
        assert all(
            torch.equal(v, before[k]) for k, v in backbone.dit.transformer.state_dict().items()
        )
