"""Runs the kernels of a library built with sanitizers over awkward shapes: ``python sanitized_scan.py LIBRARY``.

Started by test_sanitizers.py with the sanitizer's run-time library preloaded; any finding ends the process.
"""

import itertools
import sys
from pathlib import Path

import torch
from scan_cases import gated_in_segments, outputs_and_gradients, scan_inputs

from medmamba.kernels import deformable_conv, library, offset_mask_width

library.candidates = lambda: [Path(sys.argv[1])]
torch.set_num_threads(2)
names = [name for name in ("avx512", "avx2", "base") if library.cpu_library().mm_choose_isa(name.encode()) == 0]
for name in names:
    library.choose_instruction_set(name)
    for shape in [(1, 1, 1, 1, 1), (2, 65, 2, 19, 5), (1, 130, 3, 33, 17), (9, 7, 1, 4, 2), (1, 700, 1, 20, 3)]:
        for per_route, merge in itertools.product((False, True), repeat=2):
            inputs = scan_inputs(*shape, per_route=per_route)
            for given in (inputs, gated_in_segments(inputs, merge)):
                outputs_and_gradients(given, "cpp", torch.float32, merge=merge)
    inputs = scan_inputs(2, 65, 1, 19, 5)
    for left_out in ("D", "dt_bias", "routes", "initial_state"):
        del inputs[left_out]
    outputs_and_gradients(inputs, "cpp", torch.float32)
    for image, spread in (((5, 7), 2.0), ((1, 1), 1e4), ((3, 4, 5), 3.0), ((5, 5), float("nan"))):
        value = torch.randn(2, *image, 38, requires_grad=True)
        mask = (spread * torch.randn(2, *image, offset_mask_width(2, 3 ** len(image), len(image)))).requires_grad_()
        deformable_conv(value, mask, groups=2, backend="cpp").sum().backward()
print("clean", *names)
