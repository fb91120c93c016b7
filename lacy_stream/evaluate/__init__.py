"""Checkpoint -> scores: benchmarks, fact leakage, FActScore, acceptability (sections 3 and 5, appendices B and E).

harness   a model of this package for lm-eval         -> nlu, leakage
judge     a language model at an OpenAI-style endpoint -> factscore, acceptability, sweep
results   JSON with every item, a Markdown table beside the paper's figures, a plot
"""
