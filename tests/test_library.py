"""What the whole library keeps: the direction of its imports, silent imports, documented names, no pickles.

The rest is ruff's and mypy's, see pyproject.toml. Each test lists everything that offends it.
"""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import taskvec_mini

PACKAGE = Path(taskvec_mini.__file__).parent
ROOT = PACKAGE.parent
FILES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix("."): path
    for path in sorted(PACKAGE.rglob("*.py"))
}  # without "taskvec_mini." in front; the package itself is ""
TREES = {module: ast.parse(path.read_text(encoding="utf-8")) for module, path in FILES.items()}
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)

BENCHMARKS = ["data", "encoders", "heads", "training", "evaluation", "engines", "studies", "cli"]
WINGS = {  # a wing -> the wings that it may know besides itself; modules outside of folders are the core
    "core": [],
    "bounds": ["core"],
    "merging": ["core"],
    "figures": ["core"],
    "explore": ["core", "figures"],
    "command": ["core", "merging", "figures"],
    **{wing: ["core", "merging", *BENCHMARKS[:place]] for place, wing in enumerate(BENCHMARKS)},
    "benchmarks": ["core", "merging", *BENCHMARKS],
}


def wing_of(module):
    if module in ("command", "__main__"):  # the command line for people with models
        return "command"
    first, *rest = module.split(".")
    if not (PACKAGE / first).is_dir() or not first:
        return "core"
    return rest[0] if rest and rest[0] in BENCHMARKS else first


def known_by(module):
    """The modules that `module` imports, at its top, inside a function or for its types alone."""
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("taskvec_mini.") for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            package = node.module.removeprefix("taskvec_mini").removeprefix(".")
            names = {f"{package}.{alias.name}".removeprefix(".") for alias in node.names}
            found |= {name if name in TREES else package for name in names}
    return (found & set(TREES)) - {module}


def test_imports_go_one_way_between_the_wings_and_in_no_circle():
    against = [
        f"{module} imports {other}"
        for module in TREES
        for other in sorted(known_by(module))
        if wing_of(other) not in {wing_of(module), *WINGS[wing_of(module)]}
    ]
    assert not against, "\n".join(against)
    list(TopologicalSorter({module: known_by(module) for module in TREES}).static_order())


def public(tree, prefix=""):
    """Name and node of the public functions and classes of a tree, with the methods of the latter."""
    for node in tree.body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_"):
            if any(ast.unparse(each) == "overload" for each in node.decorator_list):
                continue  # the documentation stands once, where the function is
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{node.name}.")


PUBLIC = {
    f"{module}.{name}": node
    for module, tree in TREES.items()
    if not any(part.startswith("_") for part in module.split("."))
    for name, node in public(tree)
}


def taken_by(node):
    """The names of what a function, a class's constructor or a dataclass takes."""
    maker = node
    if isinstance(node, ast.ClassDef):
        maker = next((part for part in node.body if getattr(part, "name", "") == "__init__"), None)
        if maker is None:
            return {part.target.id for part in node.body if isinstance(part, ast.AnnAssign)}
    a = maker.args
    return {x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if x}


def test_arguments_that_are_documented_exist():
    wrong = []
    for place, node in PUBLIC.items():
        described = re.search(r"^Args:\n((?:    .*\n?|\n)*)", ast.get_docstring(node) or "", re.MULTILINE)
        for names in re.findall(r"^    (\w+(?:, \w+)*):", described[1] if described else "", re.MULTILINE):
            wrong += [f"{place}: {name}" for name in names.split(", ") if name not in taken_by(node)]
    assert not wrong, "\n".join(wrong)


def raises_by_itself(node):
    """Whether a function, or the constructor of a class, raises an error or hands its input to a check."""
    if isinstance(node, ast.ClassDef):
        makers = [part for part in node.body if getattr(part, "name", "") in ("__init__", "__post_init__")]
        return any(raises_by_itself(maker) for maker in makers)
    return any(
        isinstance(part, ast.Raise)
        or (isinstance(part, ast.Call) and ast.unparse(part.func).startswith("_checks."))
        for part in ast.walk(node)
    )


def test_errors_are_documented():
    silent = []
    for place, node in PUBLIC.items():
        exception = any("Error" in ast.unparse(base) for base in getattr(node, "bases", []))
        named = re.search(r"Raises:|\w+Error|[Rr]efuse", ast.get_docstring(node) or "")
        if raises_by_itself(node) and not exception and not named:
            silent.append(place)
    assert not silent, "\n".join(silent)


def test_torch_loads_nothing_but_weights():
    careless = [
        f"{module}, line {node.lineno}"
        for module, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"
        if "weights_only=True" not in ast.unparse(node)
    ]
    assert not careless


def test_no_path_of_one_machine_stands_in_the_source():
    texts = {module: path.read_text(encoding="utf-8") for module, path in FILES.items()}
    assert not [module for module, text in texts.items() if re.search(r"/(work|tmp|root|home)/", text)]


IMPORT = """
import random, sys, warnings
import numpy as np
import torch


def state():
    generators = str(random.getstate()), str(np.random.get_state()), torch.get_rng_state().tolist()
    defaults = torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled()
    return generators, defaults, torch.are_deterministic_algorithms_enabled(), warnings.filters


before = state()
import taskvec_mini
assert state() == before, "the import changed a global state"
heavy = {"sklearn", "matplotlib", "pandas", "IPython", "torchvision", "altair"}
assert not heavy & set(sys.modules), "too much is loaded"
import matplotlib
look = dict(matplotlib.rcParams)
for module in MODULES:
    __import__(module)
    assert dict(matplotlib.rcParams) == look, f"{module} changed the style"
    assert state()[:-1] == before[:-1], f"{module} changed a global state"
import matplotlib.pyplot
assert matplotlib.pyplot.get_fignums() == []
"""


def test_an_import_prints_nothing_and_changes_nothing(tmp_path):
    """In a fresh process and an empty folder; warnings are errors there too."""
    modules = [f"taskvec_mini.{module}".removesuffix(".") for module in TREES if "__main__" not in module]
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT.replace("MODULES", repr(modules))],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


def test_the_package_and_its_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert taskvec_mini.__version__ == project["version"]
    assert taskvec_mini.__all__ == ["TaskVector"]
    assert taskvec_mini.TaskVector is importlib.import_module("taskvec_mini.vectors").TaskVector
    assert (PACKAGE / "py.typed").exists()
