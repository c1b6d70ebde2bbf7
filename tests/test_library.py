"""The house rules of the library, read from its source: who may know whom, sizes, words, no side effects."""

import ast
import importlib
import inspect
import re
import statistics
import subprocess
import sys
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import taskvec_mini

PACKAGE = Path(taskvec_mini.__file__).parent
ROOT = PACKAGE.parent
FILES = sorted(path for path in PACKAGE.rglob("*.py"))
NAMES = {p: ".".join(p.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for p in FILES}
TREES = {NAMES[path]: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}
MODULES = sorted(TREES)
every_module = pytest.mark.parametrize("module", MODULES)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


# --- who knows whom --------------------------------------------------------------------------------------


def known_by(module):
    """The modules of the library that `module` imports, at its top or inside a function."""
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return (found & set(TREES)) - {"taskvec_mini", module}


def short(module):
    return module.removeprefix("taskvec_mini.")


ALLOWED = {  # the core, in the order in which a reader meets it: each may know those before it
    "_checks": set(),
    "_files": set(),
    "vectors": {"_checks", "_files"},
    "networks": {"_checks"},
    "descent": {"_checks", "networks"},
    "tasks": {"_checks", "networks"},
    "theory": {"_checks", "networks", "descent"},
    "expansions": {"_checks", "networks", "descent", "theory"},
    "quadratics": {"_checks", "networks", "descent", "theory"},
    "rounds": {"_checks", "_files", "networks", "descent"},
    "alternating": {"_checks", "vectors", "networks", "descent", "theory", "rounds"},
    "trajectories": {"_checks"},
    "_matrix_rules": set(),
    "merging": {"_checks", "_matrix_rules", "vectors"},
    "scores": {"_checks", "networks", "tasks"},
    "records": {"_checks"},
    "style": {"_checks"},
    "figures": {"_checks", "style", "tasks"},
}


@pytest.mark.parametrize("module", ALLOWED)
def test_the_core_knows_only_what_stands_before_it(module):
    assert {short(name) for name in known_by(f"taskvec_mini.{module}")} <= ALLOWED[module]


def test_no_two_modules_need_each_other():
    list(TopologicalSorter({module: known_by(module) for module in MODULES}).static_order())


@pytest.mark.parametrize("last", ["figures", "explore", "benchmarks"])
def test_what_only_chapters_use_is_known_by_no_other_module(last):
    own = re.compile(rf"taskvec_mini\.(_?{last}\w*)(\.|$)")
    for module in MODULES:
        if not own.match(module):
            assert not [name for name in known_by(module) if own.match(name)], module


@every_module
def test_imports_name_their_module_in_full(module):
    for node in ast.walk(TREES[module]):
        assert not (isinstance(node, ast.ImportFrom) and node.level), "a relative import"


# --- sizes -----------------------------------------------------------------------------------------------


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, FUNCTIONS)]


def documentation(node):
    """The lines that the docstring of a function or a module takes."""
    if ast.get_docstring(node) is None:
        return 0
    return node.body[0].end_lineno - node.body[0].lineno + 1


def length(function):
    return function.end_lineno - function.lineno + 1 - documentation(function)


@every_module
def test_no_function_is_longer_than_forty_lines(module):
    long = {node.name: length(node) for node in functions(TREES[module]) if length(node) > 40}
    assert not long


def test_half_of_all_functions_have_ten_lines_or_fewer():
    lengths = [length(node) for tree in TREES.values() for node in functions(tree)]
    assert len(lengths) > 50
    assert statistics.median(lengths) <= 10


@pytest.mark.parametrize("path", FILES, ids=[NAMES[path] for path in FILES])
def test_no_file_has_more_than_250_lines_beside_its_documentation(path):
    text, tree = path.read_text(encoding="utf-8"), TREES[NAMES[path]]
    documented = [tree, *(n for n in ast.walk(tree) if isinstance(n, (*FUNCTIONS, ast.ClassDef)))]
    assert len(text.splitlines()) - sum(map(documentation, documented)) <= 250


# --- words -----------------------------------------------------------------------------------------------


def public(tree, prefix=""):
    """Name and node of the public functions and classes of a tree, with the methods of the latter."""
    for node in tree.body:
        if isinstance(node, (*FUNCTIONS, ast.ClassDef)) and not node.name.startswith("_"):
            if any(ast.unparse(each) == "overload" for each in node.decorator_list):
                continue  # the documentation stands once, where the function is
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from public(node, f"{node.name}.")


def in_public_modules():
    for module, tree in TREES.items():
        if not any(part.startswith("_") for part in module.split(".")[1:]):
            for name, node in public(tree):
                yield pytest.param(node, id=f"{short(module)}.{name}")


every_public_name = pytest.mark.parametrize("node", list(in_public_modules()))


@every_module
def test_every_module_says_what_it_is(module):
    first = (ast.get_docstring(TREES[module]) or "").split("\n")[0]
    assert len(first.split()) >= 4
    assert first[0].isupper() or first[0] == "`"


@every_public_name
def test_every_public_name_says_what_it_is(node):
    words = (ast.get_docstring(node) or "").split("\n")[0].split()
    method = isinstance(node, FUNCTIONS) and any(argument.arg == "self" for argument in node.args.args)
    assert len(words) >= (1 if method else 4)  # a property may be just a symbol


def raises_by_itself(node):
    """Whether a function, or the constructor of a class, raises an error or hands its input to a check."""
    if isinstance(node, ast.ClassDef):
        makers = [part for part in node.body if getattr(part, "name", "") in ("__init__", "__post_init__")]
        return any(raises_by_itself(maker) for maker in makers)
    for part in ast.walk(node):
        if isinstance(part, ast.Raise):
            return True
        if isinstance(part, ast.Call) and ast.unparse(part.func).startswith("_checks."):
            return True
    return False


@every_public_name
def test_errors_are_documented(node):
    text = ast.get_docstring(node) or ""
    exception = any("Error" in ast.unparse(base) for base in getattr(node, "bases", []))
    if raises_by_itself(node) and not exception:
        assert re.search(r"Raises:|\w+Error|[Rr]efuse", text), "raises errors that it does not name"


@every_public_name
def test_what_follows_the_third_argument_is_given_by_name(node):
    if isinstance(node, FUNCTIONS):
        names = [argument.arg for argument in node.args.args if argument.arg not in ("self", "cls")]
        assert len(names) <= 3, names


@every_public_name
def test_arguments_that_are_documented_exist(node):
    """`Args:` names arguments (or fields) that are really there."""
    described = re.search(r"Args:\n((?:    .*\n?|\n)*)", ast.get_docstring(node) or "")
    maker = next((n for n in getattr(node, "body", []) if getattr(n, "name", "") == "__init__"), node)
    if described and isinstance(maker, FUNCTIONS):
        a = maker.args
        real = {x.arg for x in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if x}
        for names in re.findall(r"^    (\w+(?:, \w+)*):", described[1], re.MULTILINE):
            assert set(names.split(", ")) <= real


# --- no side effects -------------------------------------------------------------------------------------

FORBIDDEN = {
    "print": "printing in the library",
    "torch.manual_seed": "a global seed",
    "torch.cuda.manual_seed": "a global seed",
    "torch.cuda.manual_seed_all": "a global seed",
    "torch.seed": "a global seed",
    "random.seed": "a global seed",
    "np.random.seed": "a global seed",
    "torch.set_default_dtype": "a changed default",
    "warnings.filterwarnings": "a silenced warning",
    "warnings.simplefilter": "a silenced warning",
    "plt.show": "a figure shown twice",
    "pickle.load": "a pickle that is run",
    "pickle.loads": "a pickle that is run",
    "eval": "text that is run",
    "exec": "text that is run",
}


@every_module
def test_no_call_has_effects_on_the_whole_process(module):
    command_line = module.endswith("__main__") or ".benchmarks" in module
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            allowed = command_line and name == "print"
            assert name not in FORBIDDEN or allowed, f"line {node.lineno}: {FORBIDDEN[name]}"
            if name == "torch.load":
                assert "weights_only=True" in ast.unparse(node), f"line {node.lineno}: a pickle that is run"


@pytest.mark.parametrize("path", FILES, ids=[NAMES[path] for path in FILES])
def test_no_path_of_one_machine_stands_in_the_source(path):
    assert not re.search(r"/(work|tmp|root|home)/", path.read_text(encoding="utf-8"))


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
    importable = [module for module in MODULES if not module.endswith("__main__")]
    code = IMPORT.replace("MODULES", repr(importable))
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


# --- the package -----------------------------------------------------------------------------------------


def test_the_version_is_that_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert taskvec_mini.__version__ == project["version"]


def test_what_the_package_offers_is_there():
    assert taskvec_mini.__all__ == ["TaskVector"]
    assert taskvec_mini.TaskVector is importlib.import_module("taskvec_mini.vectors").TaskVector
    assert (PACKAGE / "py.typed").exists()


OPEN = [name for name in MODULES if not re.search(r"\._|__main__|benchmarks", name)]


@pytest.mark.parametrize("module", OPEN)
def test_names_listed_for_export_exist(module):
    loaded = importlib.import_module(module)
    for name in getattr(loaded, "__all__", []):
        assert hasattr(loaded, name)
    assert inspect.getdoc(loaded)
