# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""The proof of ``harness.py`` for transformers with parameters that no submodule holds."""

from harness import FamilyProof


class RootedProof(FamilyProof):
    def block_paths(self, state_dict):
        return super().block_paths({name for name in state_dict if '.' in name})
