# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # `from harness import FamilyProof`


@pytest.fixture(autouse=True, scope='session')
def _condition_cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('MMASELECT_CACHE', str(tmp_path_factory.mktemp('cache')))
        yield
