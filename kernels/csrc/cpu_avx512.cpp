// The kernels for AVX-512: one vector holds 16 channels.
#define MM_ISA avx512
#define MM_WIDTH 16
#define MM_TARGET "avx512f,avx512dq,avx512bw,avx512vl,avx2,fma"
#include "instruction_set.h"
