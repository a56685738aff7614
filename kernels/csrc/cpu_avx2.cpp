// The kernels for AVX2: one vector holds 8 channels.
#define MM_ISA avx2
#define MM_WIDTH 8
#define MM_TARGET "avx2,fma"
#include "instruction_set.h"
