// What the equations of *_math.h files need so that one text serves the CPU loops and the CUDA
// kernels: NLM_FN before a function, and a type Fn with Fn::Real, Fn::sigmoid and Fn::tanh.
// Includes nothing: NVRTC reads it too.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define NLM_FN __device__ __forceinline__
#else
#define NLM_FN inline
#endif
