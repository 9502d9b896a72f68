# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""``python -m mmaselect``, the same as the ``mmaselect`` command."""

import sys

from mmaselect.cli import main

sys.exit(main())
