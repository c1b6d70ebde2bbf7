"""Real vision tasks: data sets, encoders, frozen heads, finetuning with checkpoints, and a command line.

Everything the chapters on real images need and nothing the theory needs. The commands are shown by
`python -m taskvec_mini.benchmarks --help`.
"""
