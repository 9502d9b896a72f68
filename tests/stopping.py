# Copyright (c) mmaselect contributors. Licensed under the Apache License 2.0.
"""What tests of interrupted sweeps share."""


def stop_after(dit, passes):
    """Make the model stop as a signal stops a process, in the middle of a sweep."""
    features, calls = dit.features, []

    def killed(*args, **kwargs):
        calls.append(1)
        if len(calls) > passes:
            raise KeyboardInterrupt
        return features(*args, **kwargs)

    dit.features = killed
    return calls
