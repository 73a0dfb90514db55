"""Microbenchmarks: pynlm's kernels and training steps beside the same work in other libraries.

`pytest bench` runs the cases under pytest-benchmark; `python -m bench.report` measures all of them
and writes a page with plots. Both take their cases from `bench.catalogue` and time them as
`bench.timing` says.
"""
