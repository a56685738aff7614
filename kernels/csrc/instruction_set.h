// The kernels for one instruction set: MM_ISA is its name, MM_WIDTH the channels of a vector, MM_TARGET the compiler's
// names for what the processor must have, if that is more than any of its kind has. Empty on other processors.
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "abi.h"

#define MM_TEXT_(text) #text
#define MM_TEXT(text) MM_TEXT_(text)
#define MM_JOIN_(a, b) a##b
#define MM_JOIN(a, b) MM_JOIN_(a, b)

#if !defined(MM_TARGET) || (defined(__x86_64__) && defined(__GNUC__))
#ifdef MM_TARGET
#include <immintrin.h>
// From here to the end of the file every function may use the instruction set; it is called only where it exists.
#if defined(__clang__)
_Pragma(MM_TEXT(clang attribute push(__attribute__((target(MM_TARGET))), apply_to = function)))
#else
_Pragma(MM_TEXT(GCC target(MM_TARGET)))
#endif
#endif
#include "scan_forward.h"
#include "scan_backward.h"
#include "deform_body.h"
extern const MmIsa MM_JOIN(mm_, MM_ISA) = {MM_TEXT(MM_ISA), forward, backward, deform};
#if defined(MM_TARGET) && defined(__clang__)
#pragma clang attribute pop
#endif
#else
extern const MmIsa MM_JOIN(mm_, MM_ISA) = {MM_TEXT(MM_ISA), nullptr, nullptr, nullptr};
#endif
