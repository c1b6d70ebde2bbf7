# The book in two commands: `make book` runs and builds it, `make test` checks it. The work is done by scripts/*.py,
# which run the same on a machine without make: the README gives the plain commands.
PYTHON ?= python3
PORT ?= 8000
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
PY := $(BIN)/python
READY := $(VENV)/.installed-with-constraints
export OMP_NUM_THREADS := 1

.DEFAULT_GOAL := help
.PHONY: help book test pages execute times slides student pdf pictures release home vendor serve test-colab format clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

book: $(READY)  ## run every chapter on this machine, build the site, say where to open it
	@$(PY) scripts/build.py --execute

test: $(READY)  ## everything CI checks: lint, types, tests, doctests, chapters, strict build, browser
	@$(PY) scripts/check.py

pages: $(READY)  ## build the site from the outputs stored in the chapters (seconds)
	@$(PY) scripts/build.py

execute: $(READY)  ## run the chapters in place (CHAPTERS="book/01*.ipynb" for some, RECORD=1 to note the seconds)
	@$(PY) scripts/execute.py $(if $(RECORD),--record book/recorded/execution.json) $(CHAPTERS)

times:  ## run the chapters in place and note this machine's seconds in the book
	@$(MAKE) --no-print-directory execute RECORD=1

slides: $(READY)  ## a deck of slides for each chapter, made of its own figures (offline)
	@$(PY) scripts/slides.py

student: $(READY)  ## the chapters without solutions and outputs, and the solutions in one file
	@$(PY) scripts/student.py

pdf: $(READY)  ## the whole book and the cheat sheet as PDF (needs a Chromium)
	@$(PY) scripts/pdf.py

pictures: $(READY)  ## the picture of the README and the map of chapters, made anew from the chapters
	@$(PY) scripts/pictures.py

release: $(READY)  ## everything to take along, in _build/release
	@$(PY) scripts/pdf.py && $(PY) scripts/slides.py && $(PY) scripts/student.py && $(PY) scripts/release.py

# the address goes through the environment as it was typed: neither make nor the shell may read commands in it
unexport URL
home: export BOOK_ADDRESS = $(value URL)
home: $(READY)  ## give the book a public address: make home URL=https://github.com/OWNER/NAME
	@$(PY) scripts/home.py

vendor: $(READY)  ## fetch the browser libraries in book/_static/vendor again (needs npm)
	@$(PY) scripts/vendor_js.py

serve: $(READY)  ## serve the built site on this machine (PORT=8000)
	@$(PY) -m http.server $(PORT) --bind 127.0.0.1 --directory _build/html

test-colab: $(READY)  ## run chapter 1 as Colab would, with Colab's versions (a second environment, minutes)
	@$(PY) -m pytest tests/test_colab.py --colab-pins -s

format: $(READY)  ## let ruff put code and chapters in order
	@$(PY) -m ruff check --fix . && $(PY) -m ruff format .

clean:  ## remove what was built (the environment stays)
	rm -rf _build .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(READY): requirements.txt constraints.txt pyproject.toml scripts/install.py
	@$(PYTHON) -c "import sys; sys.version_info >= (3, 11) or sys.exit('Python 3.11 or later is needed: make PYTHON=python3.12 ...')"
	$(PYTHON) -m venv $(VENV)
	@$(PY) scripts/install.py
	@$(PY) -c "open('$(READY)', 'w').close()"
