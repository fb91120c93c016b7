"""What the fork server of processes.py imports for all of its processes. No garbage is looked for meanwhile, which
takes a third of the time, nor later among what was imported."""

import gc

gc.disable()

import composer  # noqa: E402, F401

import lacy_stream.stream.shards  # noqa: E402
import lacy_stream.train.model  # noqa: E402
import lacy_stream.train.trainer  # noqa: E402, F401

gc.freeze()
gc.enable()
