"""The plug-in for LLM Foundry 0.22: what the entry points of the package name. The only room that imports llmfoundry.

Foundry finds the names by themselves once lacy-stream is installed beside it: a YAML needs no ``code_paths``.
"""
