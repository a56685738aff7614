// The kernels for any processor: four channels per vector (SSE2 on x86-64, NEON on ARM).
#define MM_ISA base
#define MM_WIDTH 4
#include "instruction_set.h"
