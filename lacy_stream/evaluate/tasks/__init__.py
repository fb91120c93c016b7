"""Tasks for lm-eval, which takes this folder as --include_path, and --metadata '{"data": "DIR"}' for their data."""
