"""Texts -> how fast this machine annotates, and how many cores a trainer needs, without torch.

texts    files -> the texts of each turn
measure  the pool's workers, in turns -> measurements
figures  measurements -> rates, and the number of cores that a trainer needs
report   figures -> tables and sentences, on the terminal and in files
run      the run of `lacy-stream benchmark`
"""
