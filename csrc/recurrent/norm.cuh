#pragma once
constexpr double kNormEpsilon = 1e-5;  // torch.nn.LayerNorm's default
