"""Named sizes of the published networks."""

VIM = {"tiny": 192, "small": 384, "base": 768}  # width, all 24 blocks deep

# Depths, widths, and the number of parameters with 1000 classes.
MAMBAOUT: dict[str, tuple[tuple[int, ...], tuple[int, ...], int]] = {
    "femto": ((3, 3, 9, 3), (48, 96, 192, 288), 7_304_536),
    "kobe": ((3, 3, 15, 3), (48, 96, 192, 288), 9_141_208),
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 576), 26_545_096),
    "small": ((3, 4, 27, 3), (96, 192, 384, 576), 48_488_072),
    "base": ((3, 4, 27, 3), (128, 256, 512, 768), 84_813_092),
}

# Variant, width of the first stage, width c of the finest branch, and parameters with the 1000-class neck.
HRVMAMBA: dict[str, tuple[bool, int, int, int]] = {
    "nano": (True, 16, 8, 12_284_240),
    "tiny": (True, 32, 16, 14_066_728),
    "small": (False, 64, 32, 20_101_976),
    "base": (False, 64, 80, 60_548_520),
}
