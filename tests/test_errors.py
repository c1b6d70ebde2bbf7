"""What a user can put right is one class, each error also one of Python's own kind."""

import pickle
import sys

import pytest

from taskvec_mini import _imports, errors

KINDS = {
    errors.UserError: ValueError,
    errors.InputTypeError: TypeError,
    errors.FileError: OSError,
    errors.MissingFileError: FileNotFoundError,
    errors.NoConnectionError: ConnectionError,
    errors.MissingPackageError: ImportError,
}


@pytest.mark.parametrize(("ours", "python"), KINDS.items(), ids=lambda kind: kind.__name__)
def test_every_error_is_a_user_s_and_one_of_python(ours, python):
    for kind in (python, errors.UserError, ValueError):
        with pytest.raises(kind, match=r"^epochs is 0; give 1$"):
            raise ours("epochs is 0; give 1")


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_errors_come_back_from_other_processes_as_they_were(kind):
    again = pickle.loads(pickle.dumps(kind("what, and what to do")))
    assert type(again) is kind
    assert str(again) == "what, and what to do"


def test_a_missing_package_is_named_with_what_needs_it_and_how_to_get_it():
    with pytest.raises(
        errors.MissingPackageError,
        match=r'^flying needs antigravity2 \(No module .*\): python -m pip install "antigravity2\[wings\]"$',
    ):
        _imports.load("antigravity2.engine", needed_for="flying", install="antigravity2[wings]")


def test_a_package_that_is_there_but_broken_is_told_of_with_its_own_reason(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import its_other_half")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(errors.MissingPackageError, match=r"needs half_installed .*its_other_half"):
        _imports.load("half_installed", needed_for="x", install="y")


def test_a_package_is_imported_when_it_is_needed_and_not_before(tmp_path, monkeypatch):
    (tmp_path / "only_now.py").write_text("value = 3")
    monkeypatch.syspath_prepend(tmp_path)
    assert "only_now" not in sys.modules
    assert _imports.load("only_now", needed_for="x", install="y").value == 3
