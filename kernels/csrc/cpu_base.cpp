// The kernels for any processor: four channels per vector (SSE2 on x86-64, NEON on ARM).
#include "abi.h"
#define MM_WIDTH 4
#include "scan_forward.h"
#include "scan_backward.h"
#include "deform_body.h"
extern const MmIsa mm_base = {"base", forward, backward, deform_forward, deform_backward};
