# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import numpy as np
import pytest
import torch
from PIL import Image

from mmaselect.apis import FeatureExtractor, select_timestep
from mmaselect.diffusion import FrozenDiT
from mmaselect.models import ASelecTDiT

OPTIONS = dict(timesteps='0:900:300', num_images=5, image_size=32, progress=False)


def test_select_timestep_on_a_folder(tiny_dit, photos, tmp_path):
    result = select_timestep(tiny_dit, photos, blocks=2, out=tmp_path, **OPTIONS)
    assert result.timestep in (0, 300, 600)
    assert (tmp_path / 'selection.json').is_file() and (tmp_path / 'selection.png').is_file()
    selection = dict(timesteps='0:900:300', num_images=5, image_size=32)
    backbone = ASelecTDiT(tiny_dit, blocks=2, calibration=photos, selection=selection)
    # The same question has the same key: the backbone finds what the notebook found.
    assert backbone.select_timestep(progress=False).to_dict() == result.to_dict()


def test_select_timestep_on_images_in_memory(tiny_dit):
    rng = np.random.default_rng(0)
    arrays = [rng.integers(0, 256, (40, 36, 3), dtype=np.uint8) for _ in range(6)]
    dit = FrozenDiT.from_pretrained(tiny_dit, blocks=[2])
    as_arrays = select_timestep(dit, arrays, cache=False, **OPTIONS)
    as_pil = select_timestep(dit, [Image.fromarray(a) for a in arrays], cache=False, **OPTIONS)
    assert as_arrays.curve == as_pil.curve
    by_label = select_timestep(
        dit, arrays, labels=[0, 1] * 3, criterion=dict(type='FisherScore', num_classes=2),
        others=[], cache=False, **OPTIONS,
    )  # fmt: skip
    assert by_label.criterion == 'FisherScore'


def test_features_of_one_image_whatever_form_it_has(tiny_dit, photos):
    extract = FeatureExtractor(tiny_dit, timestep=30, blocks=[1, 3], features=['query', 'output'])
    path = f'{photos}/00.png'
    image = Image.open(path)
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1) / 127.5 - 1
    maps = extract(path)
    assert set(maps) == {(b, f) for b in (1, 3) for f in ('query', 'output')}
    assert maps[1, 'query'].shape == (1, 16, 10, 12)
    for form in (image, array, tensor):
        assert torch.equal(extract(form)[3, 'output'], maps[3, 'output'])
    assert torch.equal(extract(array[None])[3, 'output'], maps[3, 'output'])
    two = extract([path, array])[1, 'query']
    assert torch.allclose(two[0], two[1], atol=1e-6)
    backbone = ASelecTDiT(tiny_dit, blocks=[1], timestep=30).eval()
    assert torch.allclose(backbone(tensor[None])[0], maps[1, 'query'], atol=1e-6)


def test_a_selection_says_where_to_read(tiny_dit, photos):
    result = select_timestep(tiny_dit, photos, **OPTIONS)
    assert FeatureExtractor(tiny_dit, result).timestep == result.timestep


def test_bad_images(tiny_dit, photos, tmp_path):
    extract = FeatureExtractor(tiny_dit, timestep=30)
    with pytest.raises(ValueError, match='must have one size'):
        extract([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 12, 3), np.uint8)])
    with pytest.raises(ValueError, match='uint8 RGB, got'):
        extract(np.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match=r'\(3, H, W\), float'):
        extract(torch.zeros(3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match='images is empty'):
        extract([])
    (tmp_path / 'x.jpg').write_bytes(b'')
    with pytest.raises(ValueError, match='cannot be read'):
        extract(tmp_path / 'x.jpg')
    with pytest.raises(ValueError, match='timestep 1000 is out of range'):
        FeatureExtractor(tiny_dit, timestep=1000)
