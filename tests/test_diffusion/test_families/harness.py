# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The proof that every family must pass, on a tiny model of the true class.

Features of ``FrozenDiT`` must equal, bit for bit, what plain hooks read in the full forward pass
of the full model that stock diffusers loads from the same folder.

A test file subclasses :class:`FamilyProof`; pytest then runs all of it for that family, with the
fixtures of ``conftest.py``: ``folder``, ``pipeline`` (stock's) and ``load`` (ours)::

    class TestSD3(FamilyProof):
        num_blocks = 4

        def build(self, folder): ...                            # save a tiny pipeline
        def stock_call(self, pipeline, noisy, model_time): ...  # its full forward
        def points(self, block): ...                            # where plain hooks go
"""

import contextlib

import diffusers
import pytest
import torch

from mmaselect.diffusion import draw_noise
from mmaselect.models import ASelecTDiT


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
    """Outputs of submodules, by path; each runs exactly once."""
    outputs = {}

    def hook(path):
        def store(module, args, output):
            assert path not in outputs, f'{path} ran twice'
            outputs[path] = output

        return store

    handles = [model.get_submodule(p).register_forward_hook(hook(p)) for p in {*paths}]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


class FeatureProof:
    """The heart of it; enough for a variant of a family that another test file class covers."""

    #: Of the tiny model; 4 at least, so that first, middle and last differ.
    num_blocks: int
    #: Pixels per token of the tiny model.
    stride: int
    #: Images (height, width): square, and not square either way.
    sizes = ((64, 64), (64, 96), (96, 32))
    #: What FrozenDiT is given, and `stock_call` must follow.
    condition = None
    #: As the paper has it: 0 is clean.
    timestep = 300

    # -- what a family supplies -------------------------------------------------------------------
    def build(self, folder):
        """Save a tiny pipeline of true classes, with random weights, to ``folder``."""
        raise NotImplementedError

    def stock_call(self, pipeline, noisy, model_time):
        """Run ``pipeline.transformer`` as the pipeline's own ``__call__`` does.

        Args:
            pipeline: From :meth:`stock_pipeline`.
            noisy: Latent (B, C, H, W).
            model_time: (B,), in the scheduler's units.
        """
        raise NotImplementedError

    def points(self, block):
        """Feature to (path of a submodule of the transformer, (its output, N) to image tokens).

        All of 'query', 'key', 'value', 'attention', 'output' that the family offers.
        """
        raise NotImplementedError

    def stock_post(self, pipeline, noisy, model_time, block):
        """'query_post' and 'key_post' (B, N, C) of a block, on a path of their own.

        None where the family does not offer them.
        """
        return

    def stock_pipeline(self, folder):
        """What stock diffusers loads from ``folder``, complete."""
        return diffusers.DiffusionPipeline.from_pretrained(folder)

    def stock_latent(self, pipeline, images):
        """Clean latent as the pipeline's VAE gives it."""
        config = pipeline.vae.config
        latent = pipeline.vae.encode(images).latent_dist.mode()
        return (latent - (getattr(config, 'shift_factor', None) or 0)) * config.scaling_factor

    # -- helpers ----------------------------------------------------------------------------------
    @property
    def chosen_blocks(self):
        return (0, self.num_blocks // 2, self.num_blocks - 1)

    def noisy(self, dit, size, batch=2):
        """A clean latent, its noise, and both mixed, with the time that the model is told."""
        torch.manual_seed(sum(size))
        latent = dit.encode(torch.rand(batch, 3, *size) * 2 - 1)
        noise = draw_noise(latent.shape[1:], list(range(batch)))
        grid = dit.family.grid(latent)
        level = dit.process.at(self.timestep, num_tokens=grid[0] * grid[1])
        noisy = dit.process.add_noise(latent, noise, level)
        return latent, noise, noisy, torch.full((batch,), level.model_time)

    @torch.no_grad()
    def stock_features(self, pipeline, noisy, model_time, size):
        """(block, feature) to a map (B, C, h, w), by plain hooks on the full model."""
        rows, columns = size[0] // self.stride, size[1] // self.stride
        tokens = {}
        with recorded(
            pipeline.transformer,
            [path for block in self.chosen_blocks for path, _ in self.points(block).values()],
        ) as outputs:
            self.stock_call(pipeline, noisy, model_time)
        for block in self.chosen_blocks:
            for feature, (path, pick) in self.points(block).items():
                tokens[block, feature] = pick(outputs[path], rows * columns)
            post = self.stock_post(pipeline, noisy, model_time, block) or {}
            tokens.update({(block, feature): value for feature, value in post.items()})
        return {
            key: value.reshape(len(value), rows, columns, -1).permute(0, 3, 1, 2)
            for key, value in tokens.items()
        }

    # -- the proof --------------------------------------------------------------------------------
    @pytest.mark.parametrize('size', [0, 1, 2], ids=['square', 'wide', 'tall'])
    def test_features_equal_stock_diffusers(self, load, pipeline, size):
        size = self.sizes[size]
        dit = load(blocks=self.chosen_blocks)
        dit = load(blocks=self.chosen_blocks, features=dit.family.features)
        assert (dit.num_blocks, dit.stride) == (self.num_blocks, self.stride)
        latent, noise, noisy, model_time = self.noisy(dit, size)
        expected = self.stock_features(pipeline, noisy, model_time, size)
        features = dit.features(latent, self.timestep, noise)
        assert features.keys() == expected.keys()
        for key, value in expected.items():
            assert torch.equal(features[key], value), key
            assert dit.channels(key) == value.shape[1], key
        # No two of them are the same by accident (a hook in the wrong place).
        maps = [value for value in features.values() if value.shape == features[0, 'query'].shape]
        assert not any(torch.equal(a, b) for i, a in enumerate(maps) for b in maps[:i])

    def test_noise_level_is_the_schedulers(self, load, pipeline):
        """To rounding: the scheduler computes its table in float32, we do not."""
        dit = load()
        latent, noise, noisy, model_time = self.noisy(dit, self.sizes[0])
        rows, columns = dit.family.grid(latent)
        expected, time = self.stock_noise(pipeline, latent, noise, rows * columns)
        torch.testing.assert_close(noisy, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model_time[0].item(), time, rtol=1e-4, atol=1e-4)

    def stock_noise(self, pipeline, latent, noise, num_tokens):
        """Noisy latent and model time of ``self.timestep`` by the pipeline's own scheduler."""
        scheduler = pipeline.scheduler
        if not isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
            time = torch.tensor([self.timestep])
            return scheduler.add_noise(latent, noise, time), float(self.timestep)
        config = scheduler.config
        steps = config.num_train_timesteps
        kwargs = {}
        if config.use_dynamic_shifting:
            from diffusers.pipelines.flux.pipeline_flux import calculate_shift

            kwargs['mu'] = calculate_shift(
                num_tokens,
                config.base_image_seq_len,
                config.max_image_seq_len,
                config.base_shift,
                config.max_shift,
            )
        unshifted = [1 - i / steps for i in range(steps)]
        scheduler.set_timesteps(sigmas=unshifted, **kwargs)
        time = scheduler.timesteps[steps - self.timestep]
        return scheduler.scale_noise(latent, time[None], noise), time.item()


class FamilyProof(FeatureProof):
    """All of it."""

    #: Names of the ModuleLists that hold the blocks that are counted.
    stacks = ('transformer_blocks',)

    def test_each_feature_alone_equals_all_together(self, load):
        """Each ends its pass elsewhere."""
        everything = load(blocks=1, features=load().family.features)
        latent, noise, *_ = self.noisy(everything, self.sizes[1])
        features = everything.features(latent, self.timestep, noise)
        for feature in everything.family.features:
            alone = load(blocks=1, features=feature).features(latent, self.timestep, noise)
            assert torch.equal(alone[1, feature], features[1, feature]), feature

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
        latent, noise, noisy, model_time = self.noisy(dit, self.sizes[1])
        expected = self.stock_features(pipeline, noisy, model_time, self.sizes[1])
        features = dit.features(latent, self.timestep, noise)
        assert torch.equal(features[block, 'query'], expected[block, 'query'])

    def block_paths(self, state_dict):
        """Names of the blocks that a state dict holds."""
        names = {tuple(name.split('.')[:2]) for name in state_dict}
        return {(stack, index) for stack, index in names if stack in self.stacks}

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

    def test_half_precision(self, load):
        dit = load(dtype='bf16')
        latent, noise, *_ = self.noisy(dit, self.sizes[0])
        (feature,) = dit.features(latent, self.timestep, noise).values()
        assert feature.dtype == torch.bfloat16
        full = load()
        latent, noise, *_ = self.noisy(full, self.sizes[0])
        (exact,) = full.features(latent, self.timestep, noise).values()
        error = (feature.float() - exact).norm() / exact.norm()
        assert error < 0.1, f'relative error {error:.3f}'

    def test_a_sweep_and_training_through_the_backbone(self, folder, photos):
        backbone = ASelecTDiT(
            folder,
            timestep='auto',
            condition=self.condition,
            calibration=photos,
            selection={
                'timesteps': [200, 500, 800],
                'num_images': 2,
                'batch_size': 2,
                'image_size': self.sizes[0][0],
            },
            noise='fixed',
        )
        backbone.init_weights()
        result = backbone.selection_result
        assert backbone.timestep == result.timestep
        assert [point.timestep for point in result.curve.points] == [200, 500, 800]

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
