# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
# The short name of the reference config.
_base_ = ['./segmentation/aselect_dit-xl2-512_upernet_4xb4-80k_ade20k-512x512.py']
