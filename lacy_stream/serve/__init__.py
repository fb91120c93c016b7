"""The pair as an OpenAI-compatible service: `lacy-stream serve`.

settings       the options of the command; does not import torch
protocol       the JSON of requests, checked
answers        finished and growing texts -> the JSON of answers
runner         the thread in which the engine runs: admission, queue, cancelling
partner_watch  opens the partner, and opens it again when it was lost
metrics        counters for Prometheus
guard          the key, the host and the size of requests
app            the routes
run            the command
"""
