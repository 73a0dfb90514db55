# The one file that knows instruction-set flags. csrc/isa/kernels.cpp is compiled once a level, each
# time into its own namespace nlm::LEVEL, and dispatch.cpp chooses among the resulting tables.

set(nlm_flags_scalar)
set(nlm_flags_avx2 -march=x86-64-v3)
set(nlm_flags_avx512 -march=x86-64-v4 -mprefer-vector-width=512)
set(nlm_flags_neon)

# NLM_ISAS may name fewer of them; "scalar" must be there.
if(DEFINED NLM_ISAS)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|AMD64|amd64)$")
  set(NLM_ISAS avx512 avx2 scalar)
elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64)$")
  set(NLM_ISAS neon scalar)
else()
  set(NLM_ISAS scalar)
endif()

# No -ffast-math: a library linked with it sets flush-to-zero for the whole process. No LTO: the
# linker could move wide instructions into code that runs before the CPU has been asked.
# -Wno-psabi: vectors are passed only between functions of one file.
set(nlm_kernel_flags -fno-math-errno -fno-trapping-math -ffp-contract=fast -fno-lto -Wno-psabi)

function(nlm_add_isa_kernels target source)
  foreach(isa IN LISTS NLM_ISAS)
    set(objects nlm_kernels_${isa})
    add_library(${objects} OBJECT ${source})
    target_link_libraries(${objects} PRIVATE nlm_flags)
    target_compile_definitions(${objects} PRIVATE NLM_ISA=${isa} NLM_ISA_${isa})
    target_compile_options(${objects} PRIVATE ${nlm_flags_${isa}} ${nlm_kernel_flags})
    target_sources(${target} PRIVATE $<TARGET_OBJECTS:${objects}>)
    target_compile_definitions(${target} PRIVATE NLM_HAVE_${isa})
  endforeach()
endfunction()
