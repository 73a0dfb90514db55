// What layer norm's CPU loops and CUDA kernels share (contract: variant.h). Includes nothing.
#pragma once

constexpr double kNormEpsilon = 1e-5;  // torch.nn.LayerNorm's default
