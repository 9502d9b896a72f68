# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""Packaging of mmaselect, and its ``.mim`` folder.

MIM (and MMEngine's ``_base_ = ['mmaselect::...']``) look for configs, tools and
``model-index.yml`` in ``mmaselect/.mim``. A wheel gets copies there; an editable install gets links
into the source tree, so that an edited config is seen at once. Both are made by ``build_py``, which
every kind of install runs.
"""

import os
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = 'mmaselect'
MIM_ENTRIES = ('configs', 'tools', 'model-index.yml')
NOT_SHIPPED = shutil.ignore_patterns('__pycache__', '*.pyc', '.*')

INSTALL_REQUIRES = [
    'torch>=2.6',
    'torchvision>=0.21',
    'diffusers>=0.32',
    'safetensors',
    'huggingface_hub',
    'torchmetrics>=1.0',
    'matplotlib',
    'numpy',
    'packaging',
    'pillow',
    'rich',
]
# The two stacks share their import names and must never be installed together: hence extras.
EXTRAS_REQUIRE = {
    'onedl': [
        'onedl-mmengine>=0.10.8,<0.11',
        'onedl-mmcv>=2.0,<2.4',
        'onedl-mmsegmentation>=1.4,<2',
        'onedl-mmpretrain>=1.3,<2',
    ],
    'openmmlab': [
        'mmengine>=0.10.7,<0.11',
        'mmcv>=2.0,<2.2',
        'mmsegmentation>=1.2,<2',
        'mmpretrain>=1.2,<2',
        'ftfy',
        'regex',
        # mmcv and mmengine import pkg_resources, which setuptools dropped in 81.
        'setuptools<81',
    ],
    'text': ['transformers', 'sentencepiece', 'protobuf'],
    'pretrain': ['accelerate'],
    'analysis': ['scikit-learn', 'tensorboard'],
    'test': [
        'accelerate',
        'protobuf',
        'pytest',
        'pytest-xdist',
        'ruff',
        'scikit-image',
        'scikit-learn',
        'sentencepiece',
        'setuptools>=70.1',
        'tensorboard',
        'transformers',
    ],
}


class BuildPyWithMim(build_py):
    """``build_py`` that also fills ``mmaselect/.mim``: links for editable installs, else copies."""

    def run(self):
        super().run()
        in_tree = getattr(self, 'editable_mode', False)
        parent = ROOT if in_tree else Path(self.build_lib)
        mim = parent / PACKAGE / '.mim'
        if mim.exists():
            shutil.rmtree(mim)
        mim.mkdir(parents=True)
        for name in MIM_ENTRIES:
            self._place(ROOT / name, mim / name, link=in_tree)

    def _place(self, source, target, link):
        if link:
            try:
                target.symlink_to(os.path.relpath(source, target.parent), source.is_dir())
                return
            except OSError as error:  # Windows without the right to make links
                self.warn(f'{target} is a copy, not a link ({error}): reinstall after changes')
        if source.is_dir():
            shutil.copytree(source, target, ignore=NOT_SHIPPED)
        else:
            shutil.copy2(source, target)

    def get_outputs(self, include_bytecode=True):
        outputs = super().get_outputs(include_bytecode)
        if getattr(self, 'editable_mode', False):
            return outputs
        mim = Path(self.build_lib) / PACKAGE / '.mim'
        return outputs + [str(path) for path in mim.rglob('*') if path.is_file()]


def read_version():
    """The version, without importing the package (its dependencies may not be there yet)."""
    scope = {}
    exec((ROOT / PACKAGE / 'version.py').read_text(encoding='utf-8'), scope)
    return scope['__version__']


def read_readme():
    """The long description; a source tree without its README still installs."""
    readme = ROOT / 'README.md'
    return readme.read_text(encoding='utf-8') if readme.exists() else ''


setup(
    name='mmaselect',
    version=read_version(),
    description='Diffusion transformers as OpenMMLab backbones, their timestep picked by A-SelecT',
    long_description=read_readme(),
    long_description_content_type='text/markdown',
    author='mmaselect contributors',
    license='Apache-2.0',
    license_files=['LICENSE'],
    keywords='diffusion transformer, semantic segmentation, image classification, OpenMMLab',
    classifiers=[
        'Development Status :: 4 - Beta',
        'Operating System :: OS Independent',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    python_requires='>=3.10',
    packages=find_packages(include=[PACKAGE, f'{PACKAGE}.*']),
    package_data={
        PACKAGE: [f'weights/**/*.{suffix}' for suffix in ('json', 'safetensors', 'md', 'png')]
    },
    include_package_data=False,
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
    entry_points={'console_scripts': ['mmaselect = mmaselect.cli:main']},
    cmdclass={'build_py': BuildPyWithMim},
    zip_safe=False,
)
